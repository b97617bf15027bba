"""Where records were measured: one entry per machine and software, with what a reader needs to judge them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvbench.report.numbers import MISSING, fixed
from kvbench.runs.records import Provenance, Record

CHANGING = {"started", "finished", "load_average"}
"""Differ from trial to trial on one machine."""


@dataclass(frozen=True)
class Environment:
    """``facts`` are names and values in reading order."""

    title: str
    trials: int
    facts: tuple[tuple[str, str], ...]


def environments(records: Sequence[Record]) -> list[Environment]:
    """In the order of their first records."""
    groups: dict[tuple[Any, ...], list[Provenance]] = {}
    for record in records:
        where = record.provenance
        groups.setdefault(_identity(where), []).append(where)
    return [_environment(group) for group in groups.values()]


def _identity(where: Provenance) -> tuple[Any, ...]:
    fields = where.model_dump(exclude=CHANGING)
    return tuple(tuple(sorted(value.items())) if isinstance(value, dict) else value for value in fields.values())


def _environment(group: Sequence[Provenance]) -> Environment:
    where = group[0]
    on_cpu = where.device_name in ("cpu", where.cpu)
    facts = (
        ("processor", f"{where.cpu}, {where.cores} cores, {where.threads} threads used"),
        ("accelerator", "none used" if on_cpu else f"{where.device_name}, {_gibibytes(where.device_memory)}"),
        ("memory", _gibibytes(where.memory_total)),
        ("load average before", _loads(group)),
        ("system", f"{where.platform}, Python {where.python}"),
        ("kvbench", f"{where.kvbench}, {_commit(where)}"),
        ("torch build", where.torch_build),
        ("packages", ", ".join(f"{name} {version}" for name, version in sorted(where.packages.items()))),
        ("host (hashed)", where.hostname_hash),
        ("measured", f"{_time(min(each.started for each in group))} to {_time(max(each.finished for each in group))}"),
    )
    return Environment(where.cpu if on_cpu else where.device_name, len(group), facts)


def _gibibytes(count: int | None) -> str:
    return MISSING if count is None else f"{fixed(count / 2**30, 1)} GiB"


def _commit(where: Provenance) -> str:
    if where.git_sha is None:
        return "commit unknown"
    return f"commit {where.git_sha[:12]}{' with local changes' if where.git_dirty else ''}"


def _loads(group: Sequence[Provenance]) -> str:
    """Of the last minute before each trial; a busy machine makes slow rows."""
    loads = [where.load_average[0] for where in group if where.load_average]
    return f"{fixed(min(loads), 1)} to {fixed(max(loads), 1)} over one minute" if loads else MISSING


def _time(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M %Z}"
