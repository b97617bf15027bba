"""Intervals, ratios and tests: how sure a number is before anyone compares it.

Numpy in, plain floats out; nothing here knows what was measured. All resampling is seeded and does not depend on the
order in which values were recorded, so a stored record and a re-read one give the same interval.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from kvbench.errors import KvbenchError

Interval = tuple[float, float]
Floats = NDArray[np.float64]

SMALLEST_BCA_SAMPLE = 10
"""Below it the jackknife acceleration of BCa is noise, so the plain percentile interval is used."""

LARGEST_BCA_SAMPLE = 4096
"""Above it the jackknife (quadratic in n) costs seconds and its correction, of order 1/sqrt(n), is invisible."""

RESAMPLED_VALUES_AT_ONCE = 4_000_000
"""Bounds the memory of a bootstrap to about 32 MB, however many tokens are resampled."""

LARGEST_DIGITS = 6
"""Digits printed of a number whose uncertainty is zero or far below them."""


@dataclass(frozen=True)
class PairedRatio:
    """How many times faster the candidate is than the baseline, from ``n`` rounds in which both ran.

    ``ratio`` above 1 means that the candidate took less. ``low`` and ``high`` are None after a single round.
    """

    ratio: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Percentiles:
    """The middle and the tail of a distribution, in the unit of its values."""

    p50: float
    p90: float
    p99: float


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., float] = np.mean,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval | None:
    """Bootstrap interval of ``statistic`` over independent ``values`` (n,), or None for a single value.

    Bias-corrected and accelerated (Efron 1987), or percentile where that is undefined or n is below 10 or above 4096.
    ``statistic`` must not depend on the order of its values and is fastest when it takes ``axis``. Constant values
    give an interval of no width. Raises KvbenchError for no values or values that are not finite.
    """
    sample = np.sort(_finite(values, "bootstrap_interval"))
    if sample.size == 1:
        return None
    if np.ptp(sample) == 0:
        return (float(statistic(sample)),) * 2
    return _bootstrap((sample,), statistic, confidence, seed, resamples)


def cluster_bootstrap(
    groups: Sequence[Sequence[float]], confidence: float = 0.95, seed: int = 0, resamples: int = 2000
) -> Interval | None:
    """Interval of the mean over all values when values of one group (a document) are not independent.

    Whole groups are resampled and the pooled mean is taken of what was drawn, so long documents weigh more, as they
    do in the mean itself. None with a single group: nothing is known then about how documents differ.
    Raises KvbenchError for no groups, an empty group or values that are not finite.
    """
    values = [_finite(group, "cluster_bootstrap") for group in groups]
    if not values:
        raise KvbenchError("cluster_bootstrap needs at least one group of values, got none")
    if len(values) == 1:
        return None
    # The pooled mean needs only the sum and the size of a group; sorting them makes the order irrelevant.
    sums, sizes = np.array(sorted((group.sum(), group.size) for group in values), dtype=np.float64).T
    means = sums / sizes
    if np.ptp(means) == 0:
        return float(means[0]), float(means[0])
    return _bootstrap((sums, sizes), _pooled_mean, confidence, seed, resamples)


def paired_ratio(
    baseline: ArrayLike, candidate: ArrayLike, confidence: float = 0.95, seed: int = 0, resamples: int = 2000
) -> PairedRatio:
    """Speed-up of ``candidate`` over ``baseline`` from times (n,) of the same n rounds: median of baseline/candidate.

    Both arms of a round share its drift (clock, neighbours), so the ratio is taken inside the round before anything is
    averaged, and the bootstrap resamples rounds. Raises KvbenchError unless both have n positive, finite times.
    """
    before, after = _finite(baseline, "paired_ratio"), _finite(candidate, "paired_ratio")
    if before.size != after.size:
        raise KvbenchError(f"paired_ratio needs equally many rounds, got {before.size} and {after.size}")
    if min(before.min(), after.min()) <= 0:
        raise KvbenchError("paired_ratio needs times above zero; lengthen the timed block")
    ratios = before / after
    low, high = bootstrap_interval(ratios, np.median, confidence, seed, resamples) or (None, None)
    return PairedRatio(ratio=float(np.median(ratios)), low=low, high=high, n=ratios.size)


def percentiles(values: ArrayLike) -> Percentiles:
    """50th, 90th and 99th percentile of ``values`` (n,), interpolated linearly."""
    return Percentiles(*(float(p) for p in np.percentile(_finite(values, "percentiles"), (50, 90, 99))))


def coefficient_of_variation(values: ArrayLike) -> float | None:
    """Sample standard deviation over mean, a fraction; None for a single value. The mean must be above zero."""
    sample = _finite(values, "coefficient_of_variation")
    if sample.mean() <= 0:
        raise KvbenchError(f"coefficient_of_variation needs values with a mean above zero, got {sample.mean():g}")
    return float(sample.std(ddof=1) / sample.mean()) if sample.size > 1 else None


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value that A and B are right equally often (McNemar 1947).

    ``only_a`` counts the positions where A alone is right, ``only_b`` those where B alone is; positions where they
    agree carry no evidence. Raises KvbenchError for negative counts.
    """
    if min(only_a, only_b) < 0:
        raise KvbenchError(f"mcnemar needs counts of zero or more, got {only_a} and {only_b}")
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def significant(value: float, uncertainty: float | None = None) -> str:
    """``value`` as text with no digit that ``uncertainty`` (one standard error or half an interval) makes meaningless.

    Follows the Particle Data Group: two digits of the uncertainty count when they are at most 35, else one.
    Without an uncertainty, or with a far smaller one, six digits are shown.

    >>> significant(1.23456, 0.02), significant(1.23456, 0.5), significant(12345.6, 700)
    ('1.235', '1.2', '12300')
    """
    if not math.isfinite(value):
        return str(value)
    readable = LARGEST_DIGITS - 1 - (math.floor(math.log10(abs(value))) if value else 0)
    if not uncertainty or not math.isfinite(uncertainty):
        text = f"{value:.{max(readable, 0)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    decimals = min(_decimals(abs(uncertainty)), max(readable, 0))
    rounded = round(value, decimals) + 0.0  # adding zero turns -0.0 into 0.0
    return f"{rounded:.{max(decimals, 0)}f}"


def _decimals(uncertainty: float) -> int:
    """Decimal places that ``uncertainty`` leaves meaningful; negative where even units are not."""
    exponent = math.floor(math.log10(uncertainty))
    leading = round(uncertainty / 10.0 ** (exponent - 2))  # three digits, 100 to 1000
    if leading >= 950:
        return -exponent
    return (1 if leading <= 354 else 0) - exponent


def _bootstrap(
    sample: tuple[Floats, ...], statistic: Callable[..., float], confidence: float, seed: int, resamples: int
) -> Interval:
    """The interval of ``statistic(*sample)``; several arrays are resampled together, index by index."""
    n = sample[0].size
    methods = ("BCa", "percentile") if SMALLEST_BCA_SAMPLE <= n <= LARGEST_BCA_SAMPLE else ("percentile",)
    low = high = math.nan
    for method in methods:
        with warnings.catch_warnings():
            # A degenerate sample makes BCa warn and answer NaN; the percentile interval then takes its place.
            warnings.simplefilter("ignore", RuntimeWarning)
            interval = stats.bootstrap(
                sample,
                statistic,
                n_resamples=resamples,
                batch=max(1, RESAMPLED_VALUES_AT_ONCE // n),
                paired=True,
                confidence_level=confidence,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        low, high = float(interval.low), float(interval.high)
        if math.isfinite(low) and math.isfinite(high):
            break
    return low, high


def _pooled_mean(sums: Floats, sizes: Floats, axis: int = -1) -> float:
    """Mean over all values of groups with these ``sums`` and ``sizes``."""
    return np.sum(sums, axis=axis) / np.sum(sizes, axis=axis)


def _finite(values: ArrayLike, caller: str) -> Floats:
    """``values`` as a float64 vector (n,), n at least 1, all finite."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise KvbenchError(f"{caller} needs a flat list of at least one value, got shape {sample.shape}")
    if not np.isfinite(sample).all():
        raise KvbenchError(f"{caller} needs finite values, got {np.count_nonzero(~np.isfinite(sample))} that are not")
    return sample
