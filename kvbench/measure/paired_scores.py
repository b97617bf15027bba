"""Scores of the same samples before and after compression: how far they moved, and what may be concluded.

A test for harm and an interval for its size answer two questions. Harm is shown by an exact test of signs, which for
hits and misses is McNemar's; its absence by an interval that lies above a margin (non-inferiority). Where neither holds
nothing is concluded, and the number of samples is named that would probably decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from scipy import stats

from kvbench.errors import KvbenchError

Verdict = Literal["unharmed", "harmed", "undecided", "undecidable"]

LEVEL = 0.05
"""Error of a suite's tests taken together (Holm), and of two sides of an interval."""

QUANTILE = float(stats.norm.ppf(1 - LEVEL / 2))
"""Of the normal distribution, for an interval of two sides."""

POWER = 0.8
"""Chance of a decision that :attr:`PairedDifference.samples_needed` aims at."""

UNDECIDABLE = 0.2
"""A task of which the uncompressed model scores less says nothing about a compressor."""

LEAST_SAMPLES = 6
"""Samples below which the interval is all that scores can be: none tried covers 92 % there."""

FINEST = 5040
"""Scores are taken for fractions with a denominator up to this one: shares of up to ten references, and their means."""


@dataclass(frozen=True)
class PairedDifference:
    """Mean of after minus before over ``n`` samples, and its 95 % interval."""

    n: int
    mean: float
    low: float
    high: float
    deviation: float
    """Standard deviation of a sample's difference, a little more than was seen."""
    differences: tuple[float, ...]
    """Of every sample."""

    @property
    def p_harm(self) -> float:
        """The p-value of no harm: :func:`sign_flip`."""
        return sign_flip(self.differences)

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> PairedDifference:
        """From scores 0…1 of the same independent samples.

        Losses and gains each have Wilson's interval, and the two are combined as Newcombe does (1998, "Interval
        estimation for the difference between independent proportions", method 10). It has a width where no sample
        differs, and is the wider the rarer losses are: for shares of references it is too wide, never too narrow.

        Raises:
            KvbenchError: no samples, not as many before as after, or scores beyond 0…1.
        """
        if len(before) != len(after) or not before:
            raise KvbenchError(f"paired scores need the same samples twice, got {len(before)} and {len(after)}")
        if not all(0 <= score <= 1 for score in (*before, *after)):
            raise KvbenchError("paired scores must lie in 0…1")
        differences = np.asarray(after, np.float64) - np.asarray(before, np.float64)
        n, mean = len(differences), float(differences.mean())
        loss, gain = float(np.maximum(-differences, 0).mean()), float(np.maximum(differences, 0).mean())
        (least_loss, most_loss), (least_gain, most_gain) = wilson(loss, n), wilson(gain, n)
        # A sample that gains does not lose: the two are correlated, the more the commoner they are.
        likeness = math.sqrt(gain * loss / ((1 - gain) * (1 - loss))) if gain and loss else 0.0
        low = mean - _combined(gain - least_gain, most_loss - loss, likeness)
        high = mean + _combined(most_gain - gain, loss - least_loss, likeness)
        # One more sample each way, of weight one half: some spread is left where none was seen.
        deviation = math.sqrt((float((differences**2).sum()) + 1) / (n + 2) - (mean * n / (n + 2)) ** 2)
        if n < LEAST_SAMPLES:
            low, high = -1.0, 1.0
        return cls(n, mean, max(low, -1.0), min(high, 1.0), deviation, tuple(differences.tolist()))

    def verdict(self, margin: float, p_harm: float) -> Verdict:
        """``p_harm`` is adjusted for all tests of a suite."""
        if p_harm < LEVEL:
            return "harmed"
        return "unharmed" if self.low > -margin else "undecided"

    def samples_needed(self, margin: float) -> int:
        """Samples that would show harmlessness or harm, whichever is nearer, if all went on as it began."""
        shown_harmless, shown_harmful = margin + self.mean, -self.mean
        distance = max(shown_harmless, shown_harmful, margin / 2)
        quantiles = QUANTILE + float(stats.norm.ppf(POWER))
        return math.ceil((quantiles * self.deviation / distance) ** 2)


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion of which ``share`` was seen in ``n`` samples (Wilson 1927)."""
    z = QUANTILE
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(max(share * (1 - share), 0.0) / n + z**2 / (4 * n**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _combined(a: float, b: float, likeness: float) -> float:
    """Distance of the bound of a difference from those of its terms, whose correlation is minus ``likeness``."""
    return math.sqrt(a**2 + b**2 + 2 * likeness * a * b)


def sign_flip(differences: Sequence[float]) -> float:
    """Exact one-sided p-value that samples do not lose: the share of all sign patterns with a sum as low as this one.

    If compression does no harm, a sample's difference has either sign with equal chance. Where scores are hits and
    misses this is McNemar's exact test, one-sided.
    """
    parts = [Fraction(value).limit_denominator(FINEST) for value in differences]
    unit = math.lcm(*(part.denominator for part in parts)) if parts else 1
    steps = [int(part * unit) for part in parts if part]
    total = sum(abs(step) for step in steps)
    chances = np.zeros(2 * total + 1)
    chances[total] = 1.0
    for step in map(abs, steps):
        chances = 0.5 * (np.roll(chances, step) + np.roll(chances, -step))  # never beyond the total: nothing wraps
    return min(float(chances[: total + sum(steps) + 1].sum()), 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the given order, that keep the error of all tests together (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted
