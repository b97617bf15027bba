"""The model that whole steps are timed on, and its arms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from kvbench.compressors.compressor import parse
from kvbench.compressors.methods.none import IN_16_BIT
from kvbench.errors import KvbenchError
from kvbench.kernels.reading import Reading
from kvbench.measure.arms import Arm
from kvbench.measure.bench import CalibrationSource, ModelBench
from kvbench.measure.speed import SpeedBench

SMOLLM2 = "smollm2-135m-instruct-q4_1"
SAME_SHAPE = (
    "random:llama?layers=30,hidden=576,heads=9,kv_heads=3,head_dim=64,intermediate=1536,vocab=49152,context=8192"
)
TINY = "random:llama"
TEXT = "pydoc"
"""Part of Python, so that nothing has to be fetched."""

REFERENCE = Reading("reference")
ARMS = {
    "hf": ("hf", Reading()),
    "folded": ("none", REFERENCE),
    "none": ("none", Reading()),
    "none, 16 bit": (IN_16_BIT, Reading()),
    "int8": ("int:bits=8", Reading()),
    "int4": ("int:bits=4", Reading()),
    "3-bit latents": ("ftc:bits=3,frame=after", Reading()),
    "3-bit latents, bands": ("ftc:bits=3,frame=bands", Reading()),
    "int8 latents of half rank": ("pca:rank=0.5,heads=each,frame=after+int:bits=8", Reading()),
}
"""What whole steps compare. ``3-bit latents`` take fewer than a quarter of the bytes of 16-bit keys and values."""


@dataclass(frozen=True)
class StepCase:
    """``rounds`` of ``steps`` in each of ``batch`` rows, of which the last ends at ``tokens``."""

    batch: int
    tokens: int
    steps: int
    rounds: int
    tiny: bool = False

    @property
    def prompt(self) -> int:
        """Tokens before the steps, of which one round is for warming up."""
        return self.tokens - (self.rounds + 1) * self.steps

    def __str__(self) -> str:
        return f"{self.batch}x{self.tokens}"


@cache
def bench(tiny: bool) -> ModelBench:
    """SmolLM2-135M, or random weights of its shape where it cannot be had; the same weights serve all arms."""
    if tiny:
        return ModelBench(TINY)
    try:
        return ModelBench(SMOLLM2)
    except KvbenchError:
        return ModelBench(SAME_SHAPE)


def arm(name: str, tiny: bool) -> Arm:
    """One of :data:`ARMS`, calibrated on little: speed does not depend on how well."""
    spec, reading = ARMS[name]
    model = bench(tiny)
    source = CalibrationSource(TEXT, 2, 64 if tiny else 512)
    fitted = model.arm(parse(spec), source, reading)
    return Arm(name, fitted.model, fitted.geometry, fitted.plan, fitted.attachment, fitted.stock)


def prompt_ids(tokens: int, tiny: bool) -> torch.Tensor:
    """(1, tokens) of the text."""
    return bench(tiny).evaluation_windows(TEXT, tokens, 1).ids


def speed_bench(tokens: int, tiny: bool, batch: int = 1, steps: int = 4, rounds: int = 9) -> SpeedBench:
    """A prompt of the text, and rounds of decoding what follows it there."""
    ids = prompt_ids(tokens + (rounds + 1) * steps, tiny)
    return SpeedBench(arm("none", tiny), ids, batch, steps, rounds, warmup=1, seed=0)
