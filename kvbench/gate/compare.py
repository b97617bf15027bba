"""Two sets of results side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kvbench.gate.verdicts import TOLERANCES, Cell, Row, Side, Verdict, by_key, gravest, judge_result
from kvbench.runs.records import Record, SpeedResult

NOISE = 0.05
"""A speed-up must change by more than this share, and the intervals must part, before it counts as changed."""


def compare(a: Iterable[Record], b: Iterable[Record]) -> list[Row]:
    """One row per trial key: bytes, KLD and perplexity of ``b`` judged against ``a``, and the time per token.

    Raises UndecidedError if one side has two results under one key that were measured under different conditions.
    """
    before, after = by_key(a), by_key(b)
    return [_row(key, before.get(key), after.get(key)) for key in {**before, **after}]


def _row(key: str, before: Record | None, after: Record | None) -> Row:
    old, new = (Side.of(record) if record else None for record in (before, after))
    row = judge_result(key, old, new, TOLERANCES)
    if row.verdict in (Verdict.GONE, Verdict.FAILED, Verdict.INCOMPARABLE) and not row.cells:
        return row
    times = [record.speed.tpot_s if record and record.speed else None for record in (before, after)]
    if times == [None, None]:
        return row
    cell = Cell(times[0], times[1], _speed_verdict(before, after))
    return replace(row, cells={**row.cells, "tpot_s": cell}, verdict=gravest([row.verdict, cell.verdict]))


def _speed_verdict(before: Record | None, after: Record | None) -> Verdict | None:
    """Verdict on the speed-up over ``none``; None where it cannot be judged.

    The bare time is never judged: between two runs it drifts by more than most changes are worth, while the
    speed-up was measured against ``none`` in the same rounds. On another machine even that is another quantity.
    """
    if not (before and after and before.speed and after.speed) or _machine(before) != _machine(after):
        return None
    old, new = before.speed, after.speed
    if _faster(new, old):
        return Verdict.BETTER
    if _faster(old, new):
        return Verdict.WORSE
    return Verdict.SAME if old.ratio_to_none_interval and new.ratio_to_none_interval else None


def _faster(one: SpeedResult, other: SpeedResult) -> bool:
    if not (one.ratio_to_none and other.ratio_to_none and one.ratio_to_none_interval and other.ratio_to_none_interval):
        return False
    parted = one.ratio_to_none_interval.low > other.ratio_to_none_interval.high
    return parted and one.ratio_to_none > other.ratio_to_none * (1 + NOISE)


def _machine(record: Record) -> tuple[str, str, int]:
    return record.provenance.cpu, record.provenance.device_name, record.trial.threads
