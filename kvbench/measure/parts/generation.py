"""The generation part: long texts after short prompts, where what is compressed is what the model wrote itself."""

from __future__ import annotations

from statistics import fmean, median
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from kvbench.measure.parts.part import Inputs, PartSettings
from kvbench.storage.frozen import Frozen

if TYPE_CHECKING:
    from kvbench.compressors.compressor import Compressor
    from kvbench.measure.arms import Arm
    from kvbench.measure.bench import ModelBench
    from kvbench.measure.long_generation import GenerationBench
    from kvbench.texts.windows import Windows


class GenerationWorkload(PartSettings):
    """At most ``tokens`` tokens are generated after each of ``prompts`` prompts, that many documents' beginnings of
    ``prompt`` tokens; with ``chat`` they stand in the model's chat template, after a request to go on.

    ``temperature`` 0 decodes greedily; above, all arms sample with the same noise, so that equal distributions give
    equal texts. With ``drift`` everything is generated once more after prompts in which a ``perturbed`` share of the
    words is misspelt, and the texts' edit distances are compared.
    """

    prompts: PositiveInt = 4
    prompt: Annotated[int, Field(ge=2)] = 64
    tokens: Annotated[int, Field(ge=2)] = 512
    text: str = "essays"
    split: Literal["test", "development"] = "test"
    chat: bool = False
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    drift: bool = True
    perturbed: Annotated[float, Field(gt=0, le=1)] = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @property
    def in_words(self) -> str:
        """Prompts, tokens, and how they are drawn."""
        drawn = f"temperature {self.temperature:g}" if self.temperature else "greedy"
        return f"{self.tokens:,} tokens ({drawn}) after each of {self.prompts} prompts of {self.prompt} of {self.text}"

    def windows(self, bench: ModelBench, compressor: Compressor, inputs: Inputs) -> dict[str, Windows]:
        """The documents, from whose beginnings prompts are made."""
        return {f"prompts of {self.text}": bench.shared(_prompts, self).windows()}

    def measure(self, bench: ModelBench, arm: Arm, inputs: Inputs) -> GenerationResult:
        """Generate through ``arm``; the uncompressed cache's texts are shared."""
        return bench.shared(_prompts, self).score(arm)


class Generated(Frozen):
    """One text, through the uncompressed cache and the compressed one."""

    prompt: str
    baseline: str
    compressed: str
    baseline_tokens: int
    tokens: int
    baseline_ended: bool
    """Whether the model ended the text itself."""
    ended: bool
    diverges_at: int | None
    """The first token that differs, counted from 0; None where the texts are equal."""
    baseline_repeated: float
    """Share of four tokens in a row that stood in the text before."""
    repeated: float
    baseline_drift: float | None = None
    """Edit distance, over the longer text's tokens, to what the perturbed prompt gives; None where not measured."""
    drift: float | None = None

    @property
    def same_prefix(self) -> float:
        """Share of the uncompressed text's tokens before the first that differs."""
        return 1.0 if self.diverges_at is None else self.diverges_at / max(self.baseline_tokens, 1)


class MemoryAt(Frozen):
    """What the caches of one text take, in bytes, when they hold ``tokens`` tokens with the prompt."""

    tokens: int
    bytes: float


class GenerationResult(Frozen):
    """Texts side by side, and the compressed model's distributions along the uncompressed one's texts."""

    texts: tuple[Generated, ...]
    kld_mean: float | None
    """Mean KL(uncompressed ‖ compressed) in nats of the tokens of the uncompressed texts, which are teacher-forced;
    None where no text has two tokens."""
    noise_floor_kld: float | None
    memory: tuple[MemoryAt, ...]
    attention: str
    """What attended to the stored tokens, read back from the live cache."""

    @property
    def same_prefix(self) -> float:
        """Mean over texts."""
        return fmean(text.same_prefix for text in self.texts)

    @property
    def first_divergence(self) -> float | None:
        """Median over the texts that differ, in tokens; None where all are equal."""
        places = [text.diverges_at for text in self.texts if text.diverges_at is not None]
        return median(places) if places else None

    @property
    def length_ratio(self) -> float:
        """Tokens generated over those of the uncompressed cache: above 1 the compressed model rambles."""
        return sum(text.tokens for text in self.texts) / max(sum(text.baseline_tokens for text in self.texts), 1)

    @property
    def ended(self) -> float:
        """Share of texts that the model ended itself."""
        return fmean(text.ended for text in self.texts)

    @property
    def baseline_ended(self) -> float:
        """The uncompressed cache's."""
        return fmean(text.baseline_ended for text in self.texts)

    @property
    def repeated(self) -> float:
        """Mean share of repetition."""
        return fmean(text.repeated for text in self.texts)

    @property
    def baseline_repeated(self) -> float:
        """The uncompressed cache's."""
        return fmean(text.baseline_repeated for text in self.texts)

    @property
    def excess_drift(self) -> float | None:
        """How much further than the uncompressed cache's texts these move when the prompt is perturbed."""
        moved = [text.drift - (text.baseline_drift or 0.0) for text in self.texts if text.drift is not None]
        return fmean(moved) if moved else None


def _prompts(bench: ModelBench, workload: GenerationWorkload) -> GenerationBench:
    from kvbench.measure.long_generation import GenerationBench

    return GenerationBench.of(bench, workload)
