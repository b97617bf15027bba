"""The tasks part: what the model can still do through the compressed cache."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

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

MARGIN = 0.05
"""Loss of score below which a compressor counts as harmless."""


class TasksWorkload(PartSettings):
    """RULER-style ``tasks``, ``samples`` of each, ``length`` tokens with the answer.

    Contexts are compressed before any question is seen, or, ``query_aware``, together with it; ``questions`` of them
    are put to each, where a task has several: each alone, or in a ``conversation``, where the questions before and the
    right answers to them stay in the cache. ``qa_1`` and ``qa_2`` ask ``questions_of`` invented towns, or of SQuAD and
    HotpotQA (from the hub, or a local copy). Needles are hidden in ``text``; ``chat`` puts the model's chat template
    around context and question. A compressor is unharmed if it loses less than ``margin`` of score, 0…1.
    """

    tasks: tuple[str, ...] = RULER
    length: PositiveInt = 1024
    samples: PositiveInt = 10
    questions: PositiveInt = 1
    conversation: bool = False
    query_aware: bool = False
    questions_of: Literal["invented towns", "published data"] = "invented towns"
    text: str = "essays"
    split: Literal["test", "development"] = "test"
    chat: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    margin: Annotated[float, Field(gt=0, le=1)] = MARGIN

    @field_validator("tasks")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in RULER:
                raise ValueError(str(unknown("task", name, RULER)))
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tasks must be one or more of {', '.join(RULER)}, each once")
        return names

    @model_validator(mode="after")
    def _one_prompt_a_question(self) -> TasksWorkload:
        if self.query_aware and self.conversation:
            raise ValueError("query_aware compresses a context anew for each question: set conversation to false")
        return self

    @property
    def in_words(self) -> str:
        """Tasks, samples and length."""
        which = "13 RULER-style tasks" if self.tasks == RULER else ", ".join(self.tasks)
        turns = f", {self.questions} questions in a row" if self.conversation else ""
        turns += ", compressed with the question" if self.query_aware else ""
        return f"{which}, {self.samples} × {self.length:,} tokens each{turns}"

    def windows(self, bench: ModelBench, compressor: Compressor, inputs: Inputs) -> dict[str, Windows]:
        """The contexts and questions, one after the other."""
        bench.check_context("length of tasks", self.length)
        return {"tasks": bench.shared(_samples, self).windows()}

    def measure(self, bench: ModelBench, arm: Arm, inputs: Inputs) -> TasksResult:
        """Let ``arm`` answer all questions; the uncompressed cache's answers are shared."""
        return TasksResult(tasks=bench.shared(_samples, self).answers(arm))


class Answer(Frozen):
    """What ``sample`` was answered through the uncompressed cache, and through the compressed one.

    Scores are 0…1: the share of ``references`` that an answer contains, or whether it contains one of them.
    """

    sample: int
    question: str
    references: tuple[str, ...]
    baseline: str
    compressed: str
    baseline_score: float
    score: float
    turn: PositiveInt = 1
    """Which of the questions that were put to the context, from 1 on."""
    failed: bool = False
    """Whether one of both answers ended because the model's logits were not finite."""


class TaskScore(Frozen):
    """One task, or one cell of a grid."""

    task: str
    answers: tuple[Answer, ...]
    attention: str
    """What attended to the stored tokens, read back from the live cache."""

    @property
    def score(self) -> float:
        """Mean over answers, 0…1."""
        return sum(answer.score for answer in self.answers) / len(self.answers)

    @property
    def baseline(self) -> float:
        """The uncompressed cache's."""
        return sum(answer.baseline_score for answer in self.answers) / len(self.answers)

    @property
    def identical(self) -> bool:
        """Whether every answer is the uncompressed cache's, letter by letter."""
        return all(answer.compressed == answer.baseline for answer in self.answers)

    def by_sample(self) -> tuple[list[float], list[float]]:
        """Scores before and after compression, a mean over questions for every sample: these are independent."""
        rows: dict[int, list[Answer]] = {}
        for answer in self.answers:
            rows.setdefault(answer.sample, []).append(answer)
        before = [sum(answer.baseline_score for answer in row) / len(row) for row in rows.values()]
        return before, [sum(answer.score for answer in row) / len(row) for row in rows.values()]


class TasksResult(Frozen):
    """Scores of tasks through the compressed cache, beside those of the uncompressed one."""

    tasks: tuple[TaskScore, ...]

    def by_turn(self) -> list[tuple[float, float]]:
        """Mean scores of the first questions, the second ones and so on: uncompressed and compressed."""
        turns: dict[int, list[Answer]] = {}
        for answer in (answer for task in self.tasks for answer in task.answers):
            turns.setdefault(answer.turn, []).append(answer)
        return [
            (fmean(each.baseline_score for each in answers), fmean(each.score for each in answers))
            for _, answers in sorted(turns.items())
        ]

    @property
    def score(self) -> float:
        """Mean over tasks."""
        return sum(task.score for task in self.tasks) / len(self.tasks)

    @property
    def baseline(self) -> float:
        """The uncompressed cache's."""
        return sum(task.baseline for task in self.tasks) / len(self.tasks)


def _samples(bench: ModelBench, workload: TasksWorkload) -> TaskBench:
    from kvbench.measure.tasks import TaskBench, essay_words
    from kvbench.tasks.fitting import Dialogue, PromptTemplate
    from kvbench.tasks.ruler.published import CORPORA
    from kvbench.tasks.ruler.ruler import INVENTED, ruler_task

    essay, corpora = essay_words(workload.text, workload.split), INVENTED
    if workload.questions_of == "published data":
        corpora = {name: read() for name, read in CORPORA.items() if name in workload.tasks}
    tasks = {name: (ruler_task(name, workload.length, essay, corpora), workload.length) for name in workload.tasks}
    template = PromptTemplate.of(bench.loaded.tokenizer, workload.chat, workload.conversation)
    dialogue = Dialogue(workload.questions, workload.conversation, workload.query_aware)
    return TaskBench.of(bench, tasks, template, workload.samples, workload.seed, dialogue)
