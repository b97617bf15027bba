"""How much this machine disagrees with itself: one workload timed as if it were two (an A/A test).

The arms are interleaved and compared by the same estimator that compares compressors, so whatever ratio comes out
beyond its interval, and whatever spread there is, belongs to the machine and bounds what can be told apart on it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from kvbench.measure.statistics import PairedRatio, coefficient_of_variation, paired_ratio

ROUNDS = 31
WARM_UP_ROUNDS = 5
"""A fixed number: warming up until times settle would make two machines, or two days, incomparable."""

MATRIX_SIZE = 512
"""Square float32 matrices of this size take milliseconds to multiply: far above the clock's resolution."""


@dataclass(frozen=True)
class Noise:
    """Result of an A/A test: ``ratio`` should include 1, ``variation`` (standard deviation over mean) be small."""

    ratio: PairedRatio
    variation: float


def measure_noise(rounds: int = ROUNDS) -> Noise:
    """Time the same matrix product in two interleaved arms, ``rounds`` (at least 2) times each, in about 0.5 s."""
    matrix = torch.rand(MATRIX_SIZE, MATRIX_SIZE, generator=torch.Generator().manual_seed(0))
    for _ in range(WARM_UP_ROUNDS):
        _seconds(matrix)
    arms: tuple[list[float], list[float]] = ([], [])
    for round_number in range(rounds):
        # A B, B A, A B, ...: whoever goes second in a round does not always go second.
        for arm in (arms, arms[::-1])[round_number % 2]:
            arm.append(_seconds(matrix))
    variation = coefficient_of_variation(arms[0] + arms[1]) or 0.0
    return Noise(ratio=paired_ratio(*arms), variation=variation)


def _seconds(matrix: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(matrix, matrix)
    return time.perf_counter() - start
