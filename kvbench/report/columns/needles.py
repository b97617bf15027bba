"""Columns of the needles part: what is found again."""

from __future__ import annotations

from collections.abc import Callable

from kvbench.measure.parts.needles import NeedlesResult
from kvbench.report.columns.column import Cell, Column, plain
from kvbench.runs.records import Record


def _needles(show: Callable[[NeedlesResult], Cell | None]) -> Callable[[Record], Cell | None]:
    return lambda record: show(record.needles) if record.needles else None


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _lost(result: NeedlesResult) -> Cell:
    answers = [answer for cell in result.cells for answer in cell.score.answers]
    right = [answer for answer in answers if answer.baseline_score == 1]
    lost = sum(answer.score < 1 for answer in right)
    return Cell(f"{lost} of {len(right)}", lost)


def _worst(result: NeedlesResult) -> Cell | None:
    falling = min(result.cells, key=lambda cell: cell.score.score - cell.score.baseline)
    change = falling.score.score - falling.score.baseline
    return Cell(f"{falling.score.task}: {100 * change:+.0f}", change) if change < 0 else None


COLUMNS = (
    Column(
        "needles\n%",
        "Needles retrieved, mean over all depths and lengths.",
        _needles(lambda result: plain(result.retrieved, _percent)),
        summary=True,
    ),
    Column(
        "needles\nof none, %",
        "The same through the uncompressed cache.",
        _needles(lambda result: plain(result.baseline, _percent)),
        summary=True,
        importance=6,
    ),
    Column(
        "needles\nlost",
        "Needles that are retrieved through the uncompressed cache and not through the compressed one.",
        _needles(_lost),
        summary=True,
    ),
    Column("worst\nplace", "Where the score falls most, in points of 100.", _needles(_worst), importance=2),
)
