"""What this machine's processor reaches in a decode step beside its peaks: measured, where peaks would flatter it.

Two things keep small models far from a roofline here: matrices that are multiplied with a few rows are read more slowly
than memory allows, and every layer is some twenty calls from Python. Both are measured on matrices and a model of the
measurement's own, so what comes out stays a projection of the model in question.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from statistics import median

import torch
from torch.nn import functional

from kvbench.cache.attach import CompressedModel
from kvbench.compressors.compressor import parse
from kvbench.hardware.devices import Accelerator, Measured, processor
from kvbench.hooks.geometry import probe_geometry
from kvbench.models.random_models import build

MULTIPLIED = 1 << 28
"""Bytes of the matrices that are multiplied: more than a core's caches many times over."""
FEW_LAYERS, MORE_LAYERS = 4, 16
HIDDEN, INTERMEDIATE = 512, 1536
"""Of the model whose layers are timed: calls take twice as long where weights have passed through the caches."""
STEPS = 15


def this_processor(memory: float | None = None) -> Accelerator:
    """:func:`~kvbench.hardware.devices.processor` as measured here, with what it reaches; ``memory`` in bytes."""
    return replace(processor(None, None, memory), measured=Measured(product_rate, layer_seconds))


@lru_cache(maxsize=32)
def product_rate(rows: int, width: int) -> float:
    """Bytes per second of square fp32 matrices, ``width`` wide, that ``rows`` rows are multiplied with."""
    matrices = [torch.ones(width, width) for _ in range(max(1, MULTIPLIED // (4 * width * width)))]
    states = torch.ones(rows, width)

    def multiply() -> None:
        for matrix in matrices:
            functional.linear(states, matrix)

    return sum(matrix.nbytes for matrix in matrices) / _seconds(multiply, 5)


@lru_cache(maxsize=32)
def layer_seconds(rows: int) -> float:
    """Seconds that a layer of ``rows`` rows takes beside the products with its weights, after a few tokens."""
    (few, few_bytes), (more, more_bytes) = (_step(layers, rows) for layers in (FEW_LAYERS, MORE_LAYERS))
    products = (more_bytes - few_bytes) / product_rate(rows, HIDDEN)
    return max(0.0, more - few - products) / (MORE_LAYERS - FEW_LAYERS)


@torch.no_grad()
def _step(layers: int, rows: int) -> tuple[float, int]:
    """Seconds of a decode step of a small model with kvbench's uncompressed cache, and the bytes of its weights."""
    model = build("llama", layers=layers, hidden=HIDDEN, heads=8, kv_heads=2, intermediate=INTERMEDIATE)
    geometry = probe_geometry(model)
    with CompressedModel(model, parse("none").fit(geometry, None), geometry) as compressed:
        cache = compressed.new_cache()

        def step() -> None:
            model(torch.zeros(rows, 1, dtype=torch.long), past_key_values=cache)

        return _seconds(step, STEPS), sum(weights.nbytes for weights in model.parameters())


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of ``repeats`` after two that warm up."""
    taken = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return median(taken[2:])
