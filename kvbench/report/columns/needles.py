"""Columns of the needles part: what is found again."""

from __future__ import annotations

from collections.abc import Callable

from kvbench.measure.parts.needles import NeedlesResult
from kvbench.report.columns.column import Cell, Column, percent, plain
from kvbench.report.columns.tasks import broken
from kvbench.runs.records import Record


def _needles(show: Callable[[NeedlesResult], Cell | None]) -> Callable[[Record], Cell | None]:
    return lambda record: show(record.needles) if record.needles else None


def _worst(result: NeedlesResult) -> Cell | None:
    falling = min(result.cells, key=lambda cell: cell.score.score - cell.score.baseline)
    change = falling.score.score - falling.score.baseline
    return Cell(f"{falling.score.task}: {100 * change:+.0f}", change) if change < 0 else None


COLUMNS = (
    Column(
        "needles\n%",
        "Needles retrieved, mean over all depths and lengths.",
        _needles(lambda result: plain(result.retrieved, percent)),
        summary=True,
    ),
    Column(
        "needles\nof none, %",
        "The same through the uncompressed cache.",
        _needles(lambda result: plain(result.baseline, percent)),
        summary=True,
        importance=6,
    ),
    Column(
        "needles\nlost",
        "Needles that are retrieved through the uncompressed cache and not through the compressed one.",
        _needles(lambda result: broken(cell.score for cell in result.cells)),
        summary=True,
    ),
    Column("worst\nplace", "Where the score falls most, in points of 100.", _needles(_worst), importance=2),
)
