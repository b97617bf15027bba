"""How one number is judged against another, and one result against another.

All metrics here are better when smaller. Nothing passes by being absent: a result that is gone, failed, or was measured
under other conditions has a verdict of its own, and NaN is worse than anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from kvbench.errors import UndecidedError
from kvbench.runs.canonical import content, digest
from kvbench.runs.records import Record, Trial
from kvbench.runs.trials import Frozen

Metric = Literal["bytes_per_token", "allocated_bytes", "kld_mean", "perplexity"]


class Verdict(StrEnum):
    """What became of a number or a result, from harmless to grave."""

    SAME = "SAME"
    NEW = "NEW"
    BETTER = "BETTER"
    WORSE = "WORSE"
    INCOMPARABLE = "INCOMPARABLE"
    """Measured from other weights, texts, workload, dtype, device or seed: the numbers say nothing about each other."""
    GONE = "GONE"
    FAILED = "FAILED"


class Tolerance(Frozen):
    """The larger of the two margins within which a number counts as unchanged."""

    relative: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    absolute: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    def allows(self, before: float, after: float) -> bool:
        """Whether the numbers are equal or within the margin; never for NaN or between finite and infinite."""
        margin = max(self.absolute, self.relative * abs(before)) if math.isfinite(before) else 0.0
        return before == after or abs(after - before) <= margin


EXACT = Tolerance(relative=0.0, absolute=0.0)
TOLERANCES: dict[Metric, Tolerance] = {
    "bytes_per_token": EXACT,
    "allocated_bytes": EXACT,
    # Another processor rounds differently and tips a few quantized values: far below these margins. The absolute one
    # covers compressors without any loss, whose KLD is pure rounding noise.
    "kld_mean": Tolerance(relative=0.02, absolute=1e-6),
    "perplexity": Tolerance(relative=0.002, absolute=0.0),
}


@dataclass(frozen=True)
class Cell:
    """One metric on both sides. ``verdict`` is None where a difference would not be the compressor's doing."""

    before: float | None
    after: float | None
    verdict: Verdict | None


@dataclass(frozen=True)
class Row:
    """One trial key on both sides; ``verdict`` is the gravest of its cells or of the result itself."""

    key: str
    verdict: Verdict
    cells: dict[str, Cell] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Side:
    """What one side knows of a trial key: its exact metrics, or why there are none, and under which conditions."""

    values: dict[Metric, float]
    conditions: dict[str, str]
    failure: str = ""

    @classmethod
    def of(cls, record: Record) -> Side:
        """The side that a record is."""
        failure = f"{record.status}: {record.failure.type}: {record.failure.message}" if record.failure else ""
        return cls(metrics(record), conditions(record.trial), failure)


def metrics(record: Record) -> dict[Metric, float]:
    """The record's reproducible numbers; without those its workload did not ask for."""
    values: dict[Metric, float] = {}
    if record.memory:
        values["bytes_per_token"] = record.memory.bytes_per_token
        values["allocated_bytes"] = record.memory.allocated.total
    if record.quality:
        values["kld_mean"] = record.quality.kld_mean
        values["perplexity"] = record.quality.perplexity
    return values


def conditions(trial: Trial) -> dict[str, str]:
    """What must agree before two results may be compared. The compressor's code is not among it: that is under test."""
    texts = {f"text {name}": sha256 for name, sha256 in trial.text_sha256.items()}
    return {
        "weights": trial.weights_sha256,
        "workload": digest(content(trial.workload))[:16],
        "dtype": trial.dtype,
        "device": trial.device,
        "seed": str(trial.seed),
        **texts,
    }


def by_key(records: Iterable[Record]) -> dict[str, Record]:
    """The latest record under each key. Raises UndecidedError where two were measured under different conditions."""
    found: dict[str, Record] = {}
    for record in records:
        key = record.trial.key
        if key in found and (differing := _differing(conditions(found[key].trial), conditions(record.trial))):
            raise UndecidedError(f"two results for {key!r} differ in {differing}; keep such runs in separate folders")
        found[key] = record
    return found


def judge(before: float | None, after: float | None, tolerance: Tolerance) -> Verdict:
    """The verdict on one number, of which at least one side must be there."""
    if before is None:
        return Verdict.NEW
    if after is None:
        return Verdict.GONE
    if tolerance.allows(before, after):
        return Verdict.SAME
    return Verdict.BETTER if after < before else Verdict.WORSE


def judge_result(key: str, before: Side | None, after: Side | None, tolerances: Mapping[Metric, Tolerance]) -> Row:
    """The row of one key, of which at least one side must be there."""
    if after is None:
        return Row(key, Verdict.GONE, note="no result")
    if after.failure:
        return Row(key, Verdict.FAILED, note=after.failure)
    if before is None or before.failure:
        return Row(key, Verdict.NEW, _cells({}, after.values, tolerances), note=before.failure if before else "")
    if differing := _differing(before.conditions, after.conditions):
        return Row(key, Verdict.INCOMPARABLE, note=f"differs in {differing}")
    cells = _cells(before.values, after.values, tolerances)
    return Row(key, gravest(cell.verdict for cell in cells.values()), cells)


def gravest(verdicts: Iterable[Verdict | None]) -> Verdict:
    """The gravest verdict; SAME for none at all."""
    order = list(Verdict)
    return max((verdict for verdict in verdicts if verdict), key=order.index, default=Verdict.SAME)


def _cells(
    before: Mapping[Metric, float], after: Mapping[Metric, float], tolerances: Mapping[Metric, Tolerance]
) -> dict[str, Cell]:
    pairs = {name: (before.get(name), after.get(name)) for name in TOLERANCES if name in before or name in after}
    return {name: Cell(*pair, judge(*pair, tolerances[name])) for name, pair in pairs.items()}


def _differing(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Names and values of the conditions that differ, in words; empty if none do."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name} ({before.get(name, 'none')[:16]} → {after.get(name, 'none')[:16]})" for name in names)
