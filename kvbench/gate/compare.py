"""Two sets of results side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from kvbench.gate.metrics import TOLERANCES
from kvbench.gate.verdicts import Cell, Row, Side, Verdict, by_key, gravest, judge_result
from kvbench.measure.parts import WITH_INTERVALS
from kvbench.measure.parts.speed import SpeedResult
from kvbench.runs.records import Record

NOISE = 0.05
"""A speed-up must change by more than this share, and the intervals must part, before it counts as changed."""


def compare(a: Iterable[Record], b: Iterable[Record]) -> list[Row]:
    """One row per trial key: ``b`` judged against ``a`` by bytes, KLD, perplexity and speed-up.

    Raises UndecidedError if one side has two results under one key that were measured under different conditions.
    """
    before, after = by_key(a), by_key(b)
    return [_row(key, before.get(key), after.get(key)) for key in {**before, **after}]


def _row(key: str, before: Record | None, after: Record | None) -> Row:
    old, new = (Side.of(record) if record else None for record in (before, after))
    row = judge_result(key, old, new, TOLERANCES)
    if row.verdict in (Verdict.GONE, Verdict.FAILED, Verdict.INCOMPARABLE) and not row.cells:
        return row
    cells = {**row.cells, **_speed_cells(before, after)}
    verdict = gravest([row.verdict, *(cell.verdict for cell in cells.values())])
    note = "; ".join(filter(None, (row.note, *_methods(before, after))))
    return replace(row, cells=cells, verdict=verdict, note=note)


def _methods(before: Record | None, after: Record | None) -> Iterator[str]:
    """What is to be said of intervals that two methods made; a KLD is judged without its interval, a speed-up by it."""
    for part in WITH_INTERVALS:
        old, new = (getattr(record, part, None) for record in (before, after))
        if old and new and old.interval_method != new.interval_method:
            names = f"{old.interval_method or '?'} → {new.interval_method or '?'}"
            yield f"{part} intervals of two methods ({names}): measure the older side anew to compare them"


def _speed_cells(before: Record | None, after: Record | None) -> dict[str, Cell]:
    """The time per token, never judged, and the speed-up over ``none``, judged within one kind of machine.

    Between two runs a bare time drifts by more than most changes make; the speed-up was measured against
    ``none`` in the same rounds. On another machine even that is another quantity.
    """
    old, new = (record.speed if record else None for record in (before, after))
    times = Cell(old.tpot_s if old else None, new.tpot_s if new else None, None)
    ratios = Cell(old.ratio_to_none if old else None, new.ratio_to_none if new else None, None)
    if before and after and old and new and _machine(before) == _machine(after):
        ratios = replace(ratios, verdict=_speed_verdict(old, new))
    cells = {"tpot_s": times, "ratio_to_none": ratios}
    return {name: cell for name, cell in cells.items() if (cell.before, cell.after) != (None, None)}


def _speed_verdict(old: SpeedResult, new: SpeedResult) -> Verdict | None:
    """None where a side has no interval: nothing is known then about its noise."""
    if old.interval_method != new.interval_method:
        return Verdict.INCOMPARABLE
    if not (old.ratio_to_none and new.ratio_to_none and old.ratio_to_none_interval and new.ratio_to_none_interval):
        return None
    if new.ratio_to_none_interval.low > old.ratio_to_none_interval.high:
        return Verdict.BETTER if new.ratio_to_none > old.ratio_to_none * (1 + NOISE) else Verdict.SAME
    if new.ratio_to_none_interval.high < old.ratio_to_none_interval.low:
        return Verdict.WORSE if new.ratio_to_none * (1 + NOISE) < old.ratio_to_none else Verdict.SAME
    return Verdict.SAME


def _machine(record: Record) -> tuple[str, str, int]:
    return record.provenance.cpu, record.provenance.device_name, record.trial.threads
