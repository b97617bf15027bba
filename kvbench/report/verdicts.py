"""What tasks say of a compressor: unharmed, harmed, or not decided, task by task and taken together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from kvbench.measure.paired_scores import LEVEL, UNDECIDABLE, PairedDifference, Verdict, holm
from kvbench.measure.parts.tasks import TaskScore


@dataclass(frozen=True)
class TaskVerdict:
    """One task: how far its score moved, and what follows from that."""

    task: TaskScore
    difference: PairedDifference
    verdict: Verdict


@dataclass(frozen=True)
class Judgement:
    """All tasks of a record. ``difference`` is over the samples of those that decide; None where none does."""

    tasks: tuple[TaskVerdict, ...]
    difference: PairedDifference | None
    verdict: Verdict
    samples_needed: int | None
    """Samples over all tasks that would probably decide, where these do not."""

    @property
    def deciding(self) -> list[TaskVerdict]:
        """Tasks that the uncompressed model can do at all."""
        return [task for task in self.tasks if task.verdict != "undecidable"]

    @property
    def retention(self) -> float | None:
        """Share of the uncompressed cache's score that is left, a mean over the tasks that decide."""
        shares = [each.task.score / each.task.baseline for each in self.deciding]
        return sum(shares) / len(shares) if shares else None


@lru_cache(maxsize=1024)  # every column of a table needs it
def judged(tasks: tuple[TaskScore, ...], margin: float) -> Judgement:
    """The verdicts on ``tasks`` under a ``margin`` of score, 0…1.

    Tests of the single tasks and of all together are one family (Holm). A compressor is harmed if any of them shows it.
    Where every answer is the uncompressed cache's letter by letter it is unharmed, however few they are.
    """
    differences = [PairedDifference.of(*task.by_sample()) for task in tasks]
    deciding = [index for index, task in enumerate(tasks) if task.baseline >= UNDECIDABLE]
    if not deciding:
        verdicts = tuple(TaskVerdict(*pair, "undecidable") for pair in zip(tasks, differences, strict=True))
        return Judgement(verdicts, None, "undecidable", None)
    pooled = _pooled([tasks[index] for index in deciding])
    *p_values, p_pooled = holm([*(differences[index].p_harm for index in deciding), pooled.p_harm])
    adjusted = dict(zip(deciding, p_values, strict=True))
    verdicts = tuple(
        TaskVerdict(task, difference, _verdict(task.identical, difference, margin, adjusted.get(index)))
        for index, (task, difference) in enumerate(zip(tasks, differences, strict=True))
    )
    identical = all(tasks[index].identical for index in deciding)
    verdict = _verdict(identical, pooled, margin, min(p_pooled, *p_values))
    needed = pooled.samples_needed(margin) if verdict == "undecided" else None
    return Judgement(verdicts, pooled, verdict, needed)


def _verdict(identical: bool, difference: PairedDifference, margin: float, p_harm: float | None) -> Verdict:
    if p_harm is None:
        return "undecidable"
    return "unharmed" if identical and p_harm >= LEVEL else difference.verdict(margin, p_harm)


def _pooled(tasks: Sequence[TaskScore]) -> PairedDifference:
    pairs = [task.by_sample() for task in tasks]
    before, after = ([score for pair in pairs for score in pair[side]] for side in (0, 1))
    return PairedDifference.of(before, after)
