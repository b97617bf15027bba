"""Columns of the tasks part: what the model can still do."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kvbench.measure.parts.tasks import TaskScore, TasksResult
from kvbench.report.columns.column import Cell, Column, percent, plain
from kvbench.report.verdicts import Judgement, judged
from kvbench.runs.records import Record


def _tasks(show: Callable[[TasksResult], Cell | None]) -> Callable[[Record], Cell | None]:
    return lambda record: show(record.tasks) if record.tasks else None


def _judged(show: Callable[[Judgement], Cell | None]) -> Callable[[Record], Cell | None]:
    def cell(record: Record) -> Cell | None:
        settings = record.trial.workload.tasks
        return show(judged(record.tasks.tasks, settings.margin)) if record.tasks and settings else None

    return cell


def _change(judgement: Judgement) -> Cell | None:
    change = judgement.difference
    if change is None:
        return None
    spread = f"[{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
    return Cell(f"{100 * change.mean:+.1f}", change.mean, spread)


def broken(tasks: Iterable[TaskScore]) -> Cell:
    """How many of the answers that were right in full are so no more."""
    answers = [answer for task in tasks for answer in task.answers]
    right = [answer for answer in answers if answer.baseline_score == 1]
    lost = sum(answer.score < 1 for answer in right)
    return Cell(f"{lost} of {len(right)}", lost)


def _failed(result: TasksResult) -> Cell | None:
    """None where all went well."""
    count = sum(answer.failed for task in result.tasks for answer in task.answers)
    return Cell(str(count), count) if count else None


def _by_turn(result: TasksResult) -> Cell | None:
    turns = result.by_turn()
    told = ", ".join(f"{percent(score)} ({percent(before)})" for before, score in turns)
    return Cell(told, None) if len(turns) > 1 else None


def _needed(judgement: Judgement) -> Cell | None:
    """Only where the verdict is undecided."""
    return plain(judgement.samples_needed, lambda samples: f"{samples:,.0f}")


def _decides(judgement: Judgement) -> Cell:
    count = len(judgement.deciding)
    return Cell(f"{count} of {len(judgement.tasks)}", count)


def _attention(result: TasksResult) -> Cell:
    return Cell(", ".join(sorted({task.attention for task in result.tasks})), None)


LEGEND = (
    "tasks: RULER-style, not comparable with published scores; verdicts over the tasks of which the uncompressed cache "
    "scores at least 20 %"
)

COLUMNS = (
    Column(
        "tasks\n%",
        "Mean score over all tasks: the share of references that answers contain.",
        _tasks(lambda result: plain(result.score, percent)),
        summary=True,
    ),
    Column(
        "change\npoints",
        "Mean change of a sample's score against the uncompressed cache, in points of 100, over the tasks that decide; "
        "the 95 % interval is over samples (Newcombe's of two Wilson intervals).",
        _judged(_change),
        summary=True,
    ),
    Column(
        "retained\n%",
        "Score over the uncompressed cache's, a mean over the tasks in which that one scores at least 20 %.",
        _judged(lambda judgement: plain(judgement.retention, percent)),
        summary=True,
        importance=8,
    ),
    Column(
        "verdict",
        "harmed: an exact test of signs says so (McNemar's for hits and misses; Holm over all tasks and their sum). "
        "unharmed: the interval excludes a loss as large as the margin, or every answer is the same letter by letter. "
        "undecided: neither. undecidable: the uncompressed model scores below 20 % in every task.",
        _judged(lambda judgement: Cell(judgement.verdict, None)),
        summary=True,
    ),
    Column(
        "samples\nneeded",
        "Samples, over all tasks, that would decide an undecided verdict with a chance of 80 % if all went on as it "
        "began.",
        _judged(_needed),
        summary=True,
        importance=5,
    ),
    Column(
        "answers\nbroken",
        "Questions that the uncompressed cache answers in full and the compressed one does not.",
        _tasks(lambda result: broken(result.tasks)),
        summary=True,
        importance=4,
    ),
    Column(
        "answers\nfailed",
        "Answers that ended because the model's logits were not finite; they are scored as far as they came.",
        _tasks(_failed),
        summary=True,
    ),
    Column(
        "% by question\n(none)",
        "Scores of the first questions put to the contexts, the second ones and so on; in brackets those of the "
        "uncompressed cache.",
        _tasks(_by_turn),
        importance=2,
    ),
    Column(
        "tasks that\ndecide",
        "Tasks in which the uncompressed cache scores at least 20 %.",
        _judged(_decides),
        importance=3,
    ),
    Column(
        "tasks\nattend",
        "What attended to the stored tokens of the answers, read back from the live cache.",
        _tasks(_attention),
        importance=1,
    ),
)
