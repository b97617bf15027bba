"""How one number is judged against another, and one result against another.

All metrics here are better when smaller. Nothing passes by being absent: a result that is gone, failed, or was measured
under other conditions has a verdict of its own, and NaN is worse than anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kvbench.errors import UndecidedError
from kvbench.gate.agreement import contradiction, rounding
from kvbench.gate.metrics import METRICS, TOLERANCES, Tolerance, numbers
from kvbench.runs.canonical import content, digest
from kvbench.runs.records import Record
from kvbench.runs.trials import Trial


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

    values: dict[str, float]
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
        return cls(numbers(record), conditions(record.trial), failure or contradiction(record), attention)


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
    latest: dict[str, Record] = {}
    for record in records:
        key = record.trial.key
        if key in latest and (differing := _differing(conditions(latest[key].trial), conditions(record.trial))):
            raise UndecidedError(f"two results for {key!r} differ in {differing}; keep such runs in separate folders")
        latest[key] = record
    return latest


def judge(before: float | None, after: float | None, tolerance: Tolerance) -> Verdict:
    """The verdict on one number, of which at least one side must be there."""
    if before is None:
        return Verdict.NEW
    if after is None:
        return Verdict.GONE
    if tolerance.allows(before, after):
        return Verdict.SAME
    return Verdict.BETTER if after < before else Verdict.WORSE


def judge_result(key: str, before: Side | None, after: Side | None, tolerances: Mapping[str, Tolerance]) -> Row:
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


def with_rounding(tolerances: Mapping[str, Tolerance], before: Mapping[str, float]) -> dict[str, Tolerance]:
    """``tolerances`` with the rounding that a lossless compressor's divergence is allowed: a few noise floors."""
    level = rounding(before.get("noise_floor_kld", 0.0))
    allowed = dict(tolerances)
    for name in (metric.name for metric in METRICS if metric.is_divergence):
        allowed[name] = allowed[name].model_copy(update={"absolute": max(allowed[name].absolute, level)})
    return allowed


def gravest(verdicts: Iterable[Verdict | None]) -> Verdict:
    """The gravest verdict; SAME for none at all."""
    order = list(Verdict)
    return max((verdict for verdict in verdicts if verdict), key=order.index, default=Verdict.SAME)


def _cells(
    before: Mapping[str, float], after: Mapping[str, float], tolerances: Mapping[str, Tolerance]
) -> dict[str, Cell]:
    pairs = {name: (before.get(name), after.get(name)) for name in TOLERANCES if name in before or name in after}
    return {name: Cell(*pair, judge(*pair, tolerances[name])) for name, pair in pairs.items()}


def _differing(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Names and values of the conditions that differ, in words; empty if none do."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name} ({before.get(name, 'none')[:16]} → {after.get(name, 'none')[:16]})" for name in names)
