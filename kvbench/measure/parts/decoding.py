"""Settings that parts share which time decoding: a document's own next tokens, in turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeInt, PositiveInt

from kvbench.measure.parts.part import Inputs, PartSettings

if TYPE_CHECKING:
    from kvbench.compressors.compressor import Compressor
    from kvbench.measure.bench import ModelBench
    from kvbench.texts.windows import Windows


class DecodingWorkload(PartSettings):
    """Decoding of what follows ``prompt`` tokens in the document: turns of ``steps`` steps, ``rounds`` of them timed
    after ``warmup`` untimed ones.

    The timed steps, rounds · steps, must be whole block cycles of the compressor: multiples of its ``block``.
    """

    part: ClassVar[str]
    """The name of the part, for messages."""
    prompt: PositiveInt = 2048
    steps: PositiveInt = 16
    rounds: PositiveInt = 6
    warmup: NonNegativeInt = 2

    @property
    def tokens(self) -> int:
        """Of the document: the prompt, and what is decoded after it."""
        return self.prompt + (self.rounds + self.warmup) * self.steps

    def windows(self, bench: ModelBench, compressor: Compressor, inputs: Inputs) -> dict[str, Windows]:
        """The document, if the timed steps are whole block cycles of ``compressor``."""
        from kvbench.measure.cycles import require_whole_cycles

        if compressor.baseline is None:
            require_whole_cycles(str(compressor), compressor.spans.block, self.steps, self.rounds, self.part)
        bench.check_context(f"{self.part} (prompt + the steps of all rounds)", self.tokens)
        document = bench.evaluation_windows(inputs.text, self.tokens, 1, inputs.split)
        return {f"decoded {inputs.text} {self.tokens}": document}
