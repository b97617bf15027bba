"""How much this machine disagrees with itself: one workload timed as if it were two (an A/A test).

The arms are interleaved and compared by the same estimator that compares compressors, so whatever ratio comes out
beyond its interval, and whatever spread there is, belongs to the machine and bounds what can be told apart on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from kvbench.measure.statistics import PairedRatio, coefficient_of_variation, paired_ratio
from kvbench.measure.turns import timed_in_turns

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
    same = partial(torch.mm, matrix, matrix)
    first, second = timed_in_turns({"a": same, "b": same}, rounds, WARM_UP_ROUNDS).values()
    return Noise(ratio=paired_ratio(first, second), variation=coefficient_of_variation(first + second) or 0.0)
