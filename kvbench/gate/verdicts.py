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
from kvbench.gate.agreement import LEAST, ROUNDING, contradiction, rounding
from kvbench.runs.canonical import content, digest
from kvbench.runs.records import Record, Trial
from kvbench.runs.trials import Frozen

Metric = Literal[
    "bytes_per_token",
    "allocated_bytes",
    "largest_bytes",
    "predicted_bytes",
    "model_level_bytes",
    "kld_mean",
    "decode_kld_mean",
    "noise_floor_kld",
    "perplexity",
]
DIVERGENCES: tuple[Metric, ...] = ("kld_mean", "decode_kld_mean")
"""Numbers that are rounding where nothing is lost."""


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
    """Within which margin a number counts as unchanged: a share of itself, or rounding on both sides."""

    relative: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    absolute: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Numbers that are no larger than this on both sides are rounding, and any of them is as good as another."""

    def allows(self, before: float, after: float) -> bool:
        """Whether the numbers are equal or within the margin; never for NaN or between finite and infinite."""
        if before == after or max(abs(before), abs(after)) <= self.absolute:
            return True
        return math.isfinite(before) and abs(after - before) <= self.relative * abs(before)


EXACT = Tolerance(relative=0.0, absolute=0.0)
TOLERANCES: dict[Metric, Tolerance] = {
    "bytes_per_token": EXACT,
    "allocated_bytes": EXACT,
    "largest_bytes": EXACT,
    "predicted_bytes": EXACT,
    "model_level_bytes": EXACT,
    # Another processor rounds differently and tips a few quantized values.
    "kld_mean": Tolerance(relative=0.02, absolute=0.0),
    "decode_kld_mean": Tolerance(relative=0.02, absolute=0.0),
    # Rounding itself: its size matters, not its digits.
    "noise_floor_kld": Tolerance(relative=ROUNDING - 1, absolute=LEAST),
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
    attention: str = ""
    """What attended while tokens were decoded, without the instruction set."""

    @classmethod
    def of(cls, record: Record) -> Side:
        """The side that a record is. One that contradicts itself has failed."""
        decoded = record.quality.decoded if record.quality else None
        failure = f"{record.status}: {record.failure.type}: {record.failure.message}" if record.failure else ""
        attention = decoded.attention if decoded else ""
        return cls(metrics(record), conditions(record.trial), failure or contradiction(record), attention)


def metrics(record: Record) -> dict[Metric, float]:
    """The record's reproducible numbers; without those its workload did not ask for."""
    values: dict[Metric, float] = {}
    if record.memory:
        values["bytes_per_token"] = record.memory.bytes_per_token
        values["allocated_bytes"] = record.memory.allocated.total
        if record.memory.largest_bytes is not None:
            values["largest_bytes"] = record.memory.largest_bytes
        values["predicted_bytes"] = record.memory.predicted_bytes
        values["model_level_bytes"] = record.memory.model_level_bytes
    if record.quality:
        values["kld_mean"] = record.quality.kld_mean
        values["noise_floor_kld"] = record.quality.noise_floor_kld
        values["perplexity"] = record.quality.perplexity
        if record.quality.decoded:
            values["decode_kld_mean"] = record.quality.decoded.kld_mean
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
    cells = _cells(before.values, after.values, with_rounding(tolerances, before.values))
    if before.attention != after.attention:
        note = f"decoded by {after.attention or 'nothing'}, the baseline by {before.attention or 'nothing'}"
        return Row(key, Verdict.WORSE, cells, note)
    return Row(key, gravest(cell.verdict for cell in cells.values()), cells)


def with_rounding(tolerances: Mapping[Metric, Tolerance], before: Mapping[Metric, float]) -> dict[Metric, Tolerance]:
    """``tolerances`` with the rounding that a lossless compressor's divergence is allowed: a few noise floors."""
    level = rounding(before.get("noise_floor_kld", 0.0))
    return {
        name: tolerance.model_copy(update={"absolute": max(tolerance.absolute, level)})
        if name in DIVERGENCES
        else tolerance
        for name, tolerance in tolerances.items()
    }


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
