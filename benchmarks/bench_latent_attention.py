"""Decode steps of multi-head latent attention in the sizes of DeepSeek-V2-Lite, whose latents transformers expands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from models import REFERENCE, TEXT
from racing import Race, replayed

from kvbench.compressors.compressor import parse
from kvbench.kernels.reading import DEFAULT
from kvbench.measure.arms import Arm
from kvbench.measure.bench import CalibrationSource, ModelBench
from kvbench.measure.memory import walk
from kvbench.measure.speed import SpeedBench

pytestmark = pytest.mark.benchmark(timer=replayed)
SIZES = "random:minicpm3?layers=2,hidden=1024,heads=16,latent=512,rope=64,nope=128,value=128,context=16384"
TINY = "random:minicpm3"
ARMS = {
    "hf": ("hf", DEFAULT),
    "hf expanded": ("hf:latents=expanded", DEFAULT),
    "none": ("none", DEFAULT),
    "none in torch": ("none", REFERENCE),
    "int8": ("int:bits=8", DEFAULT),
    "int8 in torch": ("int:bits=8", REFERENCE),
    "half rank": ("pca:rank=0.5", DEFAULT),
    "half rank, int8": ("pca:rank=0.5,frame=after+int:bits=8", DEFAULT),
}


@dataclass(frozen=True)
class Case:
    """``rounds`` of ``steps`` after a prompt of ``tokens``."""

    tokens: int
    steps: int
    rounds: int
    model: str = SIZES

    def __str__(self) -> str:
        return str(self.tokens)


CASES = {
    "tiny": [Case(200, 1, 2, TINY)],
    "quick": [Case(2048, 4, 9)],
    "full": [Case(2048, 8, 15), Case(8192, 4, 15)],
}


@cache
def arms(model: str) -> dict[str, Arm]:
    """All of :data:`ARMS` on the same weights."""
    bench = ModelBench(model)
    source = CalibrationSource(TEXT, 2, 512)
    return {name: bench.arm(parse(spec), source, reading) for name, (spec, reading) in ARMS.items()}


@pytest.fixture(scope="module")
def race(case: Case) -> Race:
    """All arms on one prompt, a few steps at a time."""
    raced = arms(case.model)
    ids = ModelBench(case.model).evaluation_windows(TEXT, case.tokens + (case.rounds + 1) * case.steps, 1).ids
    times = SpeedBench(raced["none"], ids, 1, case.steps, case.rounds, warmup=1, seed=0).interleave(raced)
    facts = {
        name: {"attention": times.attention(name), "cache_bytes": walk(times.caches[name]).total} for name in raced
    }
    title = f"decode step with latent attention after {case.tokens:,} tokens"
    return Race(title, {name: times.rounds(name) for name in raced}, ("hf", "none"), facts)


@pytest.mark.parametrize("arm", ARMS)
def test_decode(benchmark: Any, race: Race, arm: str) -> None:
    race.report(benchmark, arm)
