"""What is to be measured of a compressor: the settings of a quality, a speed and a memory measurement."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from kvbench.storage.frozen import Frozen


class QualityWorkload(Frozen):
    """Teacher forcing: each document's first ``prefix`` tokens are prefilled, the rest is scored ``block`` at a time.

    The documents are the ``split``'s: what is quoted comes from "test", what a setting is chosen by from "development".
    ``calibration_windows`` windows of ``calibration_length`` tokens of ``calibration_text`` feed the calibration. The
    first ``decode`` scored tokens of each document are also decoded one by one, through the decode kernels.
    """

    text: str = "essays"
    split: Literal["test", "development"] = "test"
    calibration_text: str = "essays"
    calibration_windows: PositiveInt = 8
    calibration_length: PositiveInt = 1024
    documents: PositiveInt = 2
    length: PositiveInt = 1024
    prefix: PositiveInt = 256
    block: PositiveInt = 256
    decode: NonNegativeInt = 0

    @model_validator(mode="after")
    def _leaves_tokens_to_score(self) -> QualityWorkload:
        if self.prefix + 1 >= self.length:
            raise ValueError(f"prefix ({self.prefix}) must be at least 2 shorter than length ({self.length})")
        scored = self.length - 1 - self.prefix
        if self.decode > scored:
            raise ValueError(f"decode ({self.decode}) must be at most the {scored} scored tokens of a document")
        return self


class SpeedWorkload(Frozen):
    """Decoding of what follows ``prompt`` tokens in the document: turns of ``steps`` steps, ``rounds`` of them timed
    after ``warmup`` untimed ones.

    The timed steps, rounds · steps, must be whole block cycles of the compressor: multiples of its ``block``.
    """

    batch: PositiveInt = 1
    prompt: PositiveInt = 2048
    steps: PositiveInt = 16
    rounds: PositiveInt = 6
    warmup: NonNegativeInt = 2


class MemoryWorkload(Frozen):
    """The cache's bytes after ``prompt`` prefilled tokens, their maximum over ``steps`` decoded ones, and peak memory.

    Peaks need a process of their own, where the prompt is prefilled ``chunk`` tokens at a time, compressed in between,
    and at once. Without ``peaks`` the bytes are walked in the runner's process. Blocks of tokens leave the
    recent window together, so ``steps`` should be no less than a block (32 tokens unless a spec says otherwise).
    """

    batch: PositiveInt = 1
    prompt: PositiveInt = 2048
    steps: NonNegativeInt = 32
    chunk: PositiveInt = 256
    peaks: bool = True


PARTS: dict[str, type[Frozen]] = {"memory": MemoryWorkload, "speed": SpeedWorkload, "quality": QualityWorkload}
"""What a workload may measure, by the names that it has in suites and records."""
