"""The needles part: where in a context of which length the model still finds what is hidden there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator

from kvbench.measure.parts.part import Inputs, PartSettings
from kvbench.measure.parts.tasks import TaskScore
from kvbench.storage.frozen import Frozen

if TYPE_CHECKING:
    from kvbench.compressors.compressor import Compressor
    from kvbench.measure.arms import Arm
    from kvbench.measure.bench import ModelBench
    from kvbench.measure.tasks import TaskBench
    from kvbench.texts.windows import Windows

KINDS: dict[str, dict[str, Any]] = {"single": {}, "several": {"values": 4}, "distractors": {"keys": 4}}
"""What is hidden: one needle; four of one key, all of them wanted; one beside three of other keys."""


class NeedlesWorkload(PartSettings):
    """A needle at each of ``depths`` (0 is the beginning, 1 the end) of contexts of each of ``lengths`` tokens.

    ``kind`` says what is hidden beside it (:data:`KINDS`). The other keys are those of the tasks part.
    """

    lengths: tuple[PositiveInt, ...] = (512, 1024, 2048)
    depths: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    kind: Literal["single", "several", "distractors"] = "single"
    samples: PositiveInt = 4
    text: str = "essays"
    split: Literal["test", "development"] = "test"
    chat: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42

    @field_validator("lengths", "depths")
    @classmethod
    def _distinct(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or len(set(values)) < len(values):
            raise ValueError("give one or more different values")
        return values

    @property
    def in_words(self) -> str:
        """The grid, and what is hidden."""
        lengths = ", ".join(f"{length:,}" for length in self.lengths)
        depths = ", ".join(f"{depth:.0%}" for depth in self.depths)
        return f"{self.kind}, {self.samples} at each of {depths} of {lengths} tokens"

    def windows(self, bench: ModelBench, compressor: Compressor, inputs: Inputs) -> dict[str, Windows]:
        """The contexts and questions, one after the other."""
        bench.check_context("length of needles", max(self.lengths))
        return {"needles": bench.shared(_samples, self).windows()}

    def measure(self, bench: ModelBench, arm: Arm, inputs: Inputs) -> NeedlesResult:
        """Let ``arm`` answer all questions; the uncompressed cache's answers are shared."""
        scores = bench.shared(_samples, self).answers(arm)
        places = [(length, depth) for length in self.lengths for depth in self.depths]
        cells = [
            NeedleCell(length=length, depth=depth, score=score)
            for (length, depth), score in zip(places, scores, strict=True)
        ]
        return NeedlesResult(cells=tuple(cells))


class NeedleCell(Frozen):
    """Needles at one ``depth``, 0…1, of contexts of one ``length`` in tokens."""

    length: int
    depth: float
    score: TaskScore


class NeedlesResult(Frozen):
    """What was retrieved through the compressed cache, cell by cell."""

    cells: tuple[NeedleCell, ...]

    @property
    def retrieved(self) -> float:
        """Mean score over cells, 0…1."""
        return sum(cell.score.score for cell in self.cells) / len(self.cells)

    @property
    def baseline(self) -> float:
        """The uncompressed cache's."""
        return sum(cell.score.baseline for cell in self.cells) / len(self.cells)


def _samples(bench: ModelBench, workload: NeedlesWorkload) -> TaskBench:
    from kvbench.measure.tasks import TaskBench, essay_words
    from kvbench.tasks.fitting import PromptTemplate
    from kvbench.tasks.ruler.needles import Needles

    essay = essay_words(workload.text, workload.split)
    tasks = {
        f"{length} tokens, {depth:.0%}": (Needles("essay", essay, depth=depth, **KINDS[workload.kind]), length)
        for length in workload.lengths
        for depth in workload.depths
    }
    template = PromptTemplate.of(bench.loaded.tokenizer, workload.chat)
    return TaskBench.of(bench, tasks, template, workload.samples, workload.seed)
