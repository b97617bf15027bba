"""What ``pytest benchmarks/ --benchmark-json=FILE`` wrote, as tables: times, ratios, bandwidth shares, errors.

A benchmark's ``extra_info`` names its ``arm``, its ``ratios`` to the baselines of its group and, where they mean
something, ``bytes_read``, ``bandwidth``, ``share_of_read`` and so on; :data:`COLUMNS` says what is shown of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench.errors import KvbenchError
from kvbench.measure.results import Interval
from kvbench.report.numbers import MISSING, ratio, ratio_spread, short
from kvbench.report.tables import escaped


@dataclass(frozen=True)
class Arm:
    """One benchmark: the seconds of its median round, and what it says about itself."""

    name: str
    seconds: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Arms that ran in turns in one process."""

    title: str
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Benchmarks:
    """A whole file."""

    machine: dict[str, Any]
    when: str
    tables: tuple[Table, ...]


def read_benchmarks(path: Path) -> Benchmarks:
    """The content of pytest-benchmark's JSON.

    Raises:
        KvbenchError: the file cannot be read, is not such JSON, or holds no benchmark of ``benchmarks/``.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
        timed = [benchmark for benchmark in data["benchmarks"] if "arm" in benchmark["extra_info"]]
        tables = tuple(
            Table(group, tuple(_arm(benchmark) for benchmark in timed if benchmark["group"] == group))
            for group in dict.fromkeys(benchmark["group"] for benchmark in timed)
        )
        machine, when = data["machine_info"].get("kvbench", {}), data["datetime"][:10]
    except OSError as error:
        raise KvbenchError(f"cannot read {path} ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KvbenchError(f"{path} is not what `pytest benchmarks/ --benchmark-json={path}` writes") from error
    if not tables:
        raise KvbenchError(f"{path} holds no finished benchmark; run `pytest benchmarks/ --benchmark-json={path}`")
    return Benchmarks(machine, when, tables)


def _arm(benchmark: dict[str, Any]) -> Arm:
    return Arm(benchmark["extra_info"]["arm"], benchmark["stats"]["median"], benchmark["extra_info"])


def markdown(benchmarks: Benchmarks) -> str:
    """All tables as Markdown, under the machine they come from; ends with a newline."""
    parts = [_about(benchmarks), *(_table(table) for table in benchmarks.tables)]
    return "\n\n".join(parts) + "\n"


def _about(benchmarks: Benchmarks) -> str:
    machine = benchmarks.machine
    lines = [f"Measured {benchmarks.when} by `pytest benchmarks/{_option(machine)} --benchmark-json=…`."]
    if machine:
        changes = " with changes" if machine["changed"] else ""
        commit = f"{machine['commit'][:10]}{changes}" if machine["commit"] else "unknown"
        lines.append(
            f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores, kernels {machine['kernels']}, "
            f"commit {commit}, torch {machine['packages'].get('torch', 'unknown')}."
        )
        read, copied = machine["read_bandwidth"] / 1e9, machine["copy_bandwidth"] / 1e9
        lines.append(f"Memory: {read:.1f} GB/s read, {copied:.1f} GB/s copied (read + written).")
    lines.append(
        "All arms of a table ran in turns in one process. × is the speed-up, above 1 is faster: the median over rounds "
        "of the ratio within a round, with its 95 % interval."
    )
    return "\n".join(lines)


def _option(machine: dict[str, Any]) -> str:
    size = machine.get("size", "full")
    return "" if size == "full" else f" --{size}"


def _table(table: Table) -> str:
    compared = {name for arm in table.arms for name in arm.facts.get("ratios", {})}
    baselines = [arm.name for arm in table.arms if arm.name in compared]
    columns: list[tuple[str, Callable[[Arm], str]]] = [("ms", lambda arm: short(1e3 * arm.seconds))]
    columns += [(f"× {name}", _ratio(name)) for name in baselines]
    columns += [
        (title, _fact(name, form)) for name, title, form in COLUMNS if any(name in arm.facts for arm in table.arms)
    ]
    lines = [f"### {escaped(table.title)}", "", _row(["arm", *(title for title, _ in columns)])]
    lines.append(_row(["---", *("---:" for _ in columns)]))
    lines += [_row([escaped(arm.name), *(cell(arm) for _, cell in columns)]) for arm in table.arms]
    return "\n".join(lines)


def _ratio(name: str) -> Callable[[Arm], str]:
    def cell(arm: Arm) -> str:
        told = arm.facts.get("ratios", {}).get(name)
        if told is None:
            return MISSING
        mean, low, high = told["ratio"], told["low"], told["high"]
        interval = None if low is None else Interval(low=low, high=high)
        return f"{ratio(mean)} {ratio_spread(mean, interval)}".strip()

    return cell


def _fact(name: str, form: Callable[[Any], str]) -> Callable[[Arm], str]:
    def cell(arm: Arm) -> str:
        value = arm.facts.get(name)
        return MISSING if value is None else form(value)

    return cell


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("bytes_read", "MB read", lambda count: short(count / 1e6)),
    ("bytes_written", "MB written", lambda count: short(count / 1e6)),
    ("bandwidth", "GB/s", lambda speed: short(speed / 1e9)),
    ("share_of_read", "% of read", _percent),
    ("share_of_copy", "% of copy", _percent),
    ("projected_s", "projected ms", lambda seconds: short(1e3 * seconds)),
    ("projected_over_measured", "% projected", _percent),
    ("error", "error", lambda error: short(error, 2)),
    ("tokens_per_s", "tokens/s", lambda rate: f"{rate:,.0f}"),
    ("per_decoded_token_s", "ms per decoded token, all layers", lambda seconds: short(1e3 * seconds)),
    ("ratio_to_16_bit", "ratio to 16 bit", short),
    ("p99_over_p50", "p99/p50", ratio),
    ("mean_over_p50", "mean/p50", ratio),
    ("ceiling", "× none ceiling", ratio),
    ("share_of_roofline", "% of roofline", _percent),
    ("spec", "compressor", lambda spec: f"`{spec}`"),
    ("attention", "attention", escaped),
)
"""Facts by name, with their titles and forms."""
