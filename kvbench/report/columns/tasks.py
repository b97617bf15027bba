"""Columns of the tasks part: what the model still can do."""

from __future__ import annotations

from collections.abc import Callable

from kvbench.measure.parts.tasks import TasksResult
from kvbench.report.columns.column import Cell, Column, plain
from kvbench.runs.records import Record

UNDECIDABLE = 0.2
"""Tasks in which the uncompressed model scores less say nothing about a compressor."""


def _tasks(show: Callable[[TasksResult], Cell | None]) -> Callable[[Record], Cell | None]:
    return lambda record: show(record.tasks) if record.tasks else None


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _retention(result: TasksResult) -> float | None:
    """Mean share of the baseline's score that is left, over the tasks that decide."""
    shares = [task.score / task.baseline for task in result.tasks if task.baseline >= UNDECIDABLE]
    return sum(shares) / len(shares) if shares else None


def _broken(result: TasksResult) -> Cell:
    pairs = [pair for task in result.tasks for pair in zip(task.baseline_scores, task.scores, strict=True)]
    lost = sum(before == 1 and after < 1 for before, after in pairs)
    return Cell(f"{lost} of {sum(before == 1 for before, _ in pairs)}", lost)


def _decides(result: TasksResult) -> Cell:
    count = sum(task.baseline >= UNDECIDABLE for task in result.tasks)
    return Cell(f"{count} of {len(result.tasks)}", count)


LEGEND = "tasks: RULER-style, not comparable with published scores; retention over tasks that the model can do at all"

COLUMNS = (
    Column(
        "tasks\n%",
        "Mean score over all tasks: the share of references that answers contain.",
        _tasks(lambda result: plain(result.score, _percent)),
        summary=True,
    ),
    Column(
        "retained\n%",
        "Score over the uncompressed cache's, mean over the tasks in which that one scores at least 20 %.",
        _tasks(lambda result: plain(_retention(result), _percent)),
        summary=True,
    ),
    Column(
        "answers\nbroken",
        "Questions that the uncompressed cache answers in full and the compressed one does not.",
        _tasks(_broken),
        summary=True,
        importance=4,
    ),
    Column("tasks that\ndecide", "Tasks in which the uncompressed cache scores at least 20 %.", _tasks(_decides)),
    Column(
        "tasks\nattend",
        "What attended to the stored tokens of the answers, read back from the live cache.",
        _tasks(lambda result: Cell(result.attention, None)),
        summary=True,
        importance=1,
    ),
)
