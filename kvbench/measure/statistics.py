"""Intervals, ratios and tests: how sure a number is before anyone compares it.

Numpy in, plain floats out; nothing here knows what was measured. Intervals are closed formulas that do not depend on
the order in which values were recorded, so a stored record and a re-read one give the same interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from kvbench.errors import KvbenchError

Interval = tuple[float, float]
Floats = NDArray[np.float64]

MEAN_METHOD = "hall-t97"
MEDIAN_METHOD = "median-order"
"""Names of the methods, for records: intervals of two methods are not compared."""

LEAST_FOR_MEAN = 12
"""Values below which a mean has no interval: no method tried covers 92 % of skewed families there."""

HALL_LEVEL = 0.97
"""The level at which an interval that is called 95 % is made. At 0.95 its coverage falls to 91 % for 12 documents whose
KLD is lognormal with sigma 1; at this one it is at least 92 % for every family and number of documents that
``tests/measure/test_coverage.py`` tries, and 97 % where values are normal."""

LEAST_SKEWNESS = 1e-6
"""Below it the transformation is the identity to all digits, and its inverse loses them."""

LARGEST_DIGITS = 6
"""Digits printed of a number whose uncertainty is zero or far below them."""


@dataclass(frozen=True)
class PairedRatio:
    """How many times faster the candidate is than the baseline, from ``n`` rounds in which both ran.

    ``ratio`` above 1 means that the candidate took less. ``low`` and ``high`` are None after too few rounds.
    """

    ratio: float
    low: float | None
    high: float | None
    n: int
    method: str = ""
    """What made the interval; intervals of two methods are not compared."""


@dataclass(frozen=True)
class Percentiles:
    """The middle and the tail of a distribution, in the unit of its values."""

    p50: float
    p90: float
    p99: float


def mean_interval(values: ArrayLike) -> Interval | None:
    """95 % interval of the mean that independent ``values`` (n,), one a document, are drawn around.

    None below ``LEAST_FOR_MEAN`` values. :func:`hall_interval` at the level ``HALL_LEVEL``, the method that records
    call ``MEAN_METHOD``. Raises KvbenchError for no values or values that are not finite.
    """
    # Sorted: the last bits of a sum must not depend on the order in which values were recorded
    sample = np.sort(_finite(values, "mean_interval"))
    if sample.size < LEAST_FOR_MEAN:
        return None
    low, high = hall_interval(sample, HALL_LEVEL)
    return float(low), float(high)


def hall_interval(samples: Floats, level: float) -> tuple[Floats, Floats]:
    """Bounds of the two-sided interval of the mean for each of ``samples`` (..., n): two arrays (...).

    The t interval after Hall's cubic transformation (Hall 1992, "On the removal of skewness by transformation"), which
    takes the skewness out of the studentized mean and, being monotone, always has an inverse. Of symmetric samples it
    is Student's; of samples with a long upper tail it reaches further up. Constant samples have no width.
    """
    n = samples.shape[-1]
    mean, deviation = samples.mean(-1), samples.std(-1)
    safe = np.where(deviation > 0, deviation, 1.0)
    skewness = (((samples - mean[..., None]) / safe[..., None]) ** 3).mean(-1)
    quantile = float(stats.t.ppf(0.5 + level / 2, n - 1))
    scale = deviation * math.sqrt(n / (n - 1))
    return tuple(mean - scale * _untransformed(sign * quantile, skewness, n) for sign in (1, -1))  # type: ignore[return-value]


def median_interval(values: ArrayLike) -> Interval | None:
    """Interval of the median that independent ``values`` (n,) are drawn around: two of the values themselves.

    Order statistics cover it with a binomial probability, at least 95 % here, whatever the distribution is; records
    call the method ``MEDIAN_METHOD``. None below 6 values, of which even the extremes cover less.
    Raises KvbenchError for no values or values that are not finite.
    """
    sample = np.sort(_finite(values, "median_interval"))
    outside = int(stats.binom.ppf(0.025, sample.size, 0.5))
    return (float(sample[outside - 1]), float(sample[-outside])) if outside else None


def paired_ratio(baseline: ArrayLike, candidate: ArrayLike) -> PairedRatio:
    """Speed-up of ``candidate`` over ``baseline`` from times (n,) of the same n rounds: median of baseline/candidate.

    Both arms of a round share its drift (clock, neighbours), so the ratio is taken inside the round before anything is
    averaged; the interval is :func:`median_interval`. Raises KvbenchError unless both have n positive, finite times.
    """
    before, after = _finite(baseline, "paired_ratio"), _finite(candidate, "paired_ratio")
    if before.size != after.size:
        raise KvbenchError(f"paired_ratio needs equally many rounds, got {before.size} and {after.size}")
    if min(before.min(), after.min()) <= 0:
        raise KvbenchError("paired_ratio needs times above zero; lengthen the timed block")
    ratios = before / after
    low, high = median_interval(ratios) or (None, None)
    return PairedRatio(ratio=float(np.median(ratios)), low=low, high=high, n=ratios.size, method=MEDIAN_METHOD)


def percentiles(values: ArrayLike) -> Percentiles:
    """50th, 90th and 99th percentile of ``values`` (n,), interpolated linearly."""
    return Percentiles(*(float(p) for p in np.percentile(_finite(values, "percentiles"), (50, 90, 99))))


def coefficient_of_variation(values: ArrayLike) -> float | None:
    """Sample standard deviation over mean, a fraction; None for a single value. The mean must be above zero."""
    sample = _finite(values, "coefficient_of_variation")
    if sample.mean() <= 0:
        raise KvbenchError(f"coefficient_of_variation needs values with a mean above zero, got {sample.mean():g}")
    return float(sample.std(ddof=1) / sample.mean()) if sample.size > 1 else None


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


def _untransformed(quantile: float, skewness: Floats, n: int) -> Floats:
    """Hall's transformation of a studentized mean, x + g x²/3 + g² x³/27 + g/6n with skewness g, solved for x."""
    shifted = quantile / math.sqrt(n) - skewness / (6 * n)
    skewed = np.where(np.abs(skewness) > LEAST_SKEWNESS, skewness, 1.0)
    return np.where(np.abs(skewness) > LEAST_SKEWNESS, 3 * (np.cbrt(1 + skewed * shifted) - 1) / skewed, shifted)


def _finite(values: ArrayLike, caller: str) -> Floats:
    """``values`` as a float64 vector (n,), n at least 1, all finite."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise KvbenchError(f"{caller} needs a flat list of at least one value, got shape {sample.shape}")
    if not np.isfinite(sample).all():
        raise KvbenchError(f"{caller} needs finite values, got {np.count_nonzero(~np.isfinite(sample))} that are not")
    return sample
