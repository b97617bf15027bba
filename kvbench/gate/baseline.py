"""The committed baseline: exact metrics per trial key, and how far each may move.

A person may edit a number or a tolerance, and the gate judges what it then reads. What may not happen unseen is that
an entry or a metric disappears, so the checksum covers which entries there are, under which conditions they were
measured and which metrics each has, and not the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, Field, FiniteFloat, ValidationError, create_model

from kvbench.errors import UndecidedError
from kvbench.gate.metrics import TOLERANCES, TOLERANCES_OF_FITTED, MetricName, Tolerance
from kvbench.gate.verdicts import Side, by_key
from kvbench.runs.canonical import digest
from kvbench.runs.records import Record
from kvbench.storage.files import replace_file
from kvbench.storage.frozen import Frozen

BASELINE_SCHEMA = 2
"""Version of the file; the records whose numbers it holds have theirs in :data:`kvbench.runs.trials.SCHEMA`."""
REFRESH = "make a new one with `kvbench gate RESULTS --baseline FILE --update`"


_NUMBER: Any = (int | FiniteFloat | None, None)
_Numbers: Any = create_model("_Numbers", __base__=Frozen, **dict.fromkeys(TOLERANCES, _NUMBER))


class Entry(_Numbers, Frozen):
    """One trial key's numbers, a field for each of :data:`kvbench.gate.metrics.METRICS`.

    ``tolerances`` overrides the baseline's for this entry: what was calibrated starts with wider ones.
    """

    conditions: dict[str, str]
    attention: str = ""
    tolerances: dict[MetricName, Tolerance] = Field(default_factory=dict)

    @property
    def side(self) -> Side:
        """The entry as a side of a comparison."""
        numbers = {name: getattr(self, name) for name in TOLERANCES}
        values = {name: number for name, number in numbers.items() if number is not None}
        return Side(values, self.conditions, attention=self.attention)


class Baseline(Frozen):
    """The content of a baseline file; ``processors`` are those that measured it, none in files of older versions."""

    schema_version: int
    kvbench: str
    created: AwareDatetime
    processors: tuple[str, ...] = ()
    count: int
    checksum: str
    tolerances: dict[MetricName, Tolerance]
    entries: dict[str, Entry]

    def tolerances_of(self, entry: Entry) -> dict[MetricName, Tolerance]:
        """The entry's margins: its own, else the baseline's, else the default."""
        return {**TOLERANCES, **self.tolerances, **entry.tolerances}


def processors_of(records: Iterable[Record]) -> tuple[str, ...]:
    """The processors and accelerators that measured ``records``, each once."""
    names = {name for each in records for name in (each.provenance.cpu, each.provenance.device_name)}
    return tuple(sorted(names - {"cpu"}))


def write_baseline(records: Iterable[Record], path: Path | str) -> Baseline:
    """Replace the baseline file by one with these results, keeping the tolerances that were set in it.

    Raises UndecidedError if a trial failed or has a number that is not finite, if there is nothing to compare, or if
    the file is there and cannot be read.
    """
    path = Path(path)
    old = read_baseline(path) if path.exists() else None
    results = by_key(records)
    entries = {key: _entry(record, old.entries.get(key) if old else None) for key, record in results.items()}
    entries = {key: entry for key, entry in entries.items() if entry.side.values}
    if not entries:
        raise UndecidedError("no bytes, KLD or perplexity among the results; a baseline needs some")
    provenance = next(reversed(results.values())).provenance
    baseline = Baseline(
        schema_version=BASELINE_SCHEMA,
        kvbench=provenance.kvbench,
        created=provenance.finished,
        processors=processors_of(results.values()),
        count=len(entries),
        checksum=_checksum(entries),
        tolerances={**TOLERANCES, **(old.tolerances if old else {})},
        entries=entries,
    )
    replace_file(path, baseline.model_dump_json(indent=2, exclude_defaults=True).encode() + b"\n")
    return baseline


def read_baseline(path: Path | str) -> Baseline:
    """The baseline of a file. Raises UndecidedError if it is missing, cut off, incomplete or of another schema."""
    path = Path(path)
    try:
        fields: Any = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UndecidedError(f"no baseline at {path} ({error.strerror}); {REFRESH}") from error
    except ValueError as error:
        raise UndecidedError(f"baseline {path} is damaged ({error}); restore it or {REFRESH}") from error
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if version != BASELINE_SCHEMA:
        raise UndecidedError(
            f"baseline {path} has schema {version}, this kvbench reads {BASELINE_SCHEMA}; delete it and {REFRESH}"
        )
    try:
        baseline = Baseline.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UndecidedError(
            f"baseline {path} is damaged ({where}: {first['msg']}); restore it or {REFRESH}"
        ) from error
    if len(baseline.entries) != baseline.count or _checksum(baseline.entries) != baseline.checksum:
        raise UndecidedError(f"baseline {path}: entries, conditions or metrics were added or taken away; {REFRESH}")
    return baseline


def _entry(record: Record, old: Entry | None) -> Entry:
    side, key = Side.of(record), record.trial.key
    if side.failure:
        raise UndecidedError(f"{key!r} failed ({side.failure}); a baseline needs results that are all ok")
    try:
        tolerances = old.tolerances if old else _first_tolerances(side)
        return Entry(conditions=side.conditions, attention=side.attention, tolerances=tolerances, **side.values)
    except ValidationError as error:
        raise UndecidedError(f"{key!r}: {error.errors()[0]['loc'][0]} is not a finite number") from error


def _first_tolerances(side: Side) -> dict[str, Tolerance]:
    """What an entry starts with. Raised or lowered by hand, it stays."""
    fitted = any(name.startswith("text calibration ") for name in side.conditions)
    return {name: each for name, each in TOLERANCES_OF_FITTED.items() if fitted and name in side.values}


def _checksum(entries: Mapping[str, Entry]) -> str:
    return digest(
        {key: [entry.conditions, entry.attention, sorted(entry.side.values)] for key, entry in entries.items()}
    )
