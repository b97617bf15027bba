"""The tasks part: what the model can still do through the compressed cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeInt, PositiveInt, field_validator

from kvbench.errors import unknown
from kvbench.measure.parts.part import Inputs, PartSettings
from kvbench.storage.frozen import Frozen
from kvbench.tasks.names import RULER

if TYPE_CHECKING:
    from kvbench.compressors.compressor import Compressor
    from kvbench.measure.arms import Arm
    from kvbench.measure.bench import ModelBench
    from kvbench.measure.tasks import TaskBench
    from kvbench.texts.windows import Windows


class TasksWorkload(PartSettings):
    """RULER-style ``tasks``, ``samples`` of each, ``length`` tokens with the answer.

    Contexts are compressed before any question is seen; ``questions`` of them are put to each, where a task has
    several. Needles are hidden in ``text``; ``chat`` puts the model's chat template around context and question.
    """

    tasks: tuple[str, ...] = RULER
    length: PositiveInt = 1024
    samples: PositiveInt = 10
    questions: PositiveInt = 1
    text: str = "essays"
    split: Literal["test", "development"] = "test"
    chat: bool = True
    seed: NonNegativeInt = 42

    @field_validator("tasks")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in RULER:
                raise unknown("task", name, RULER)
        return names

    @property
    def in_words(self) -> str:
        """Tasks, samples and length."""
        which = "13 RULER-style tasks" if self.tasks == RULER else ", ".join(self.tasks)
        return f"{which}, {self.samples} × {self.length:,} tokens each"

    def windows(self, bench: ModelBench, compressor: Compressor, inputs: Inputs) -> dict[str, Windows]:
        """The contexts and questions, one after the other."""
        bench.check_context("length of tasks", self.length)
        return {"tasks": bench.shared(_samples, self).windows()}

    def measure(self, bench: ModelBench, arm: Arm, inputs: Inputs) -> TasksResult:
        """Let ``arm`` answer all questions; the uncompressed cache's answers are shared."""
        return bench.shared(_samples, self).score(arm)


class TaskScore(Frozen):
    """One task. Scores are 0…1: the share of references that answers contain, or whether they contain one."""

    task: str
    score: float
    baseline: float
    """Score of the uncompressed cache."""
    scores: tuple[float, ...]
    """Of every question, sample by sample."""
    baseline_scores: tuple[float, ...]
    answers: tuple[str, ...]
    baseline_answers: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]


class TasksResult(Frozen):
    """Scores of tasks through the compressed cache, beside those of the uncompressed one."""

    tasks: tuple[TaskScore, ...]
    attention: str
    """What attended to the stored tokens, read back from the live cache."""

    @property
    def score(self) -> float:
        """Mean over tasks."""
        return sum(task.score for task in self.tasks) / len(self.tasks)

    @property
    def baseline(self) -> float:
        """The uncompressed cache's."""
        return sum(task.baseline for task in self.tasks) / len(self.tasks)


def _samples(bench: ModelBench, workload: TasksWorkload) -> TaskBench:
    from kvbench.measure.tasks import TaskBench

    return TaskBench(bench, workload)
