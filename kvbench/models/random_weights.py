"""Random weights that every machine makes alike.

torch draws normal numbers with the processor's vector instructions, and another instruction set rounds its logarithms
and cosines otherwise. Here a counter-based generator (Philox 4x64, Salmon et al. 2011) gives whole numbers, of which
each weight takes eight of 16 bits: their sum is nearly normal (Irwin-Hall), exact, and scaled by one multiplication
that IEEE 754 rounds alike everywhere.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

NOISE = 0.05
"""Standard deviation that constant parameters (biases, norms) get on top of their value."""
SPREAD = 0.054
"""Standard deviation of all others: transformers' initial 0.02 and ``NOISE`` together."""

PIECES = 8
"""16-bit numbers in a weight, two words of the generator: tails end at 4.9 standard deviations."""
MEAN = PIECES * (2**16 - 1) // 2
DEVIATION = math.sqrt(PIECES * (2**32 - 1) / 12)
CHUNK = 1 << 18
"""Weights drawn at once, so that a large tensor needs no second one of twice its size."""


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Draw all fp32 parameters of ``model`` anew, each by ``seed`` and its name: their order does not matter."""
    for name, parameter in model.named_parameters():
        first = parameter.flatten()[0].clone()
        constant = bool((parameter == first).all())
        drawn = torch.from_numpy(draw(seed, name, parameter.numel(), NOISE if constant else SPREAD))
        parameter.copy_(drawn.view_as(parameter))
        if constant:
            parameter.add_(first)


def draw(seed: int, name: str, count: int, deviation: float) -> NDArray[np.float32]:
    """``count`` nearly normal numbers of mean 0 and standard ``deviation``."""
    key = hashlib.sha256(f"{seed} {name}".encode()).digest()[:16]
    generator = np.random.Philox(key=int.from_bytes(key, "little"))
    drawn = np.empty(count, np.float32)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        words = generator.random_raw(2 * size).reshape(2, size)
        sums = (_sum_of_four(words[0]) + _sum_of_four(words[1])).astype(np.int64) - MEAN
        drawn[start : start + size] = sums * (deviation / DEVIATION)  # rounded twice, each time as IEEE 754 says
    return drawn


def _sum_of_four(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The sum of each word's four 16-bit numbers."""
    every_other = np.uint64(0x0000_FFFF_0000_FFFF)
    pairs = (words & every_other) + ((words >> np.uint64(16)) & every_other)
    return (pairs & np.uint64(0xFFFF_FFFF)) + (pairs >> np.uint64(32))
