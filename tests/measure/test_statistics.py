"""Known answers name their source; the rest are properties that hold for every sample."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.errors import KvbenchError
from kvbench.measure.statistics import (
    LEAST_FOR_MEAN,
    coefficient_of_variation,
    hall_interval,
    mean_interval,
    median_interval,
    paired_ratio,
    percentiles,
    significant,
)

numbers = st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda x: round(x, 3))
samples = st.lists(numbers, min_size=LEAST_FOR_MEAN, max_size=40)
times = st.lists(st.tuples(st.floats(1e-3, 10), st.floats(1e-3, 10)), min_size=1, max_size=25)


def slack(values):
    return 1e-9 * (1 + np.abs(values).max())


def test_symmetric_samples_have_students_interval():
    # Student's 0.95 quantile of 4 degrees of freedom, two-sided: 2.776; standard deviation of 1 to 5: sqrt(2.5).
    low, high = hall_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 0.95)
    half = 2.776 * math.sqrt(2.5 / 5)
    assert (low, high) == pytest.approx((3 - half, 3 + half), abs=1e-3)


def test_halls_transformation_is_undone():
    """The bounds of the interval, put into the transformation itself, are the quantiles of t."""
    sample = np.random.default_rng(0).lognormal(0, 1, 15)
    n, mean, spread = 15, sample.mean(), sample.std(ddof=1)
    g = ((sample - mean) ** 3).mean() / sample.std() ** 3
    for end, quantile in zip(hall_interval(sample, 0.95), (2.1448, -2.1448), strict=True):
        x = (mean - end) / spread
        assert math.sqrt(n) * (x + g * x**2 / 3 + g**2 * x**3 / 27 + g / (6 * n)) == pytest.approx(quantile, abs=1e-3)


def test_too_few_values_have_no_interval():
    assert mean_interval([3.0] * (LEAST_FOR_MEAN - 1)) is None
    assert mean_interval([3.0] * LEAST_FOR_MEAN) == (3.0, 3.0)
    assert coefficient_of_variation([3.0]) is None


@pytest.mark.parametrize("make", [mean_interval, median_interval])
@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf]])
def test_bad_values_are_one_clear_error(make, values):
    with pytest.raises(KvbenchError, match="_interval needs"):
        make(values)


@given(numbers, st.integers(LEAST_FOR_MEAN, 30))
def test_constant_values_have_no_width(value, n):
    for low, high in (mean_interval([value] * n), median_interval([value] * n)):
        assert low == pytest.approx(value) and high == pytest.approx(value)


@settings(deadline=None, max_examples=50)
@given(samples)
def test_intervals_contain_what_they_are_of(values):
    for (low, high), middle in ((mean_interval(values), np.mean(values)), (median_interval(values), np.median(values))):
        assert low - slack(values) <= middle <= high + slack(values)


@settings(deadline=None, max_examples=50)
@given(samples, st.randoms(use_true_random=False))
def test_intervals_do_not_depend_on_order(values, random):
    shuffled = random.sample(values, len(values))
    assert mean_interval(shuffled) == mean_interval(values)
    assert median_interval(shuffled) == median_interval(values)


@settings(deadline=None, max_examples=50)
@given(samples, st.sampled_from([0.25, 2.0, 1024.0]))
def test_intervals_scale_with_their_values(values, factor):
    # Powers of two are exact in floating point, so nothing but the scale may change.
    low, high = mean_interval(values)
    assert mean_interval([factor * v for v in values]) == pytest.approx((factor * low, factor * high), rel=1e-12)


@settings(deadline=None, max_examples=50)
@given(samples)
def test_an_interval_mirrors_its_values(values):
    low, high = mean_interval(values)
    assert mean_interval([-v for v in values]) == pytest.approx((-high, -low), rel=1e-9, abs=slack(values))


def test_a_long_upper_tail_reaches_further_up():
    values = np.random.default_rng(0).lognormal(0, 1, 20)
    low, high = mean_interval(values)
    assert high - values.mean() > 1.5 * (values.mean() - low)


def test_ranks_of_the_medians_interval_are_those_of_the_table():
    # Conover, Practical Nonparametric Statistics (1999), table A3 (binomial): the ranks at 95 % for these sizes
    for n, rank in ((6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (20, 6), (25, 8)):
        assert median_interval(range(1, n + 1)) == (rank, n + 1 - rank)
        assert 2 * sum(math.comb(n, k) for k in range(rank)) / 2**n <= 0.05
        assert 2 * sum(math.comb(n, k) for k in range(rank + 1)) / 2**n > 0.05
    assert median_interval([1.0] * 5) is None


@settings(deadline=None, max_examples=50)
@given(times)
def test_paired_ratio_is_the_median_speed_up_inside_its_interval(rounds):
    baseline, candidate = zip(*rounds, strict=True)
    result = paired_ratio(baseline, candidate)
    assert result.ratio == pytest.approx(np.median(np.divide(baseline, candidate)))
    assert result.n == len(rounds)
    if len(rounds) < 6:
        assert result.low is None and result.high is None
    else:
        assert result.low * (1 - 1e-9) <= result.ratio <= result.high * (1 + 1e-9)


def test_paired_ratio_ignores_drift_that_both_arms_share():
    drift = np.linspace(1, 5, 15)
    result = paired_ratio(2 * drift, drift)
    assert (result.ratio, result.low, result.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("baseline", "candidate", "message"),
    [([1.0], [1.0, 2.0], "equally many"), ([0.0], [1.0], "above zero"), ([], [], "at least one")],
)
def test_paired_ratio_refuses_rounds_that_do_not_pair(baseline, candidate, message):
    with pytest.raises(KvbenchError, match=message):
        paired_ratio(baseline, candidate)


def test_percentiles_interpolate():
    result = percentiles(range(101))
    assert (result.p50, result.p90, result.p99) == (50.0, 90.0, 99.0)


def test_coefficient_of_variation_uses_the_sample_deviation():
    # mean 2, squared deviations 1 + 0 + 1 over n - 1 = 2: deviation 1
    assert coefficient_of_variation([1.0, 2.0, 3.0]) == pytest.approx(0.5)
    with pytest.raises(KvbenchError, match="mean above zero"):
        coefficient_of_variation([-1.0, 1.0])


@pytest.mark.parametrize(
    ("value", "uncertainty", "text"),
    [
        # Particle Data Group, Review of Particle Physics, introduction 5.3: .827 +- .119 -> .83 +- .12,
        # .827 +- .367 -> .8 +- .4; 950 to 999 round up to 1000 and keep two digits.
        (0.827, 0.119, "0.83"),
        (0.827, 0.367, "0.8"),
        (12345.6, 960.0, "12300"),
        (12345.6, 700.0, "12300"),
        (1.0, 1e-20, "1.00000"),
        (-0.001, 0.1, "0.00"),
        (3.0, 50.0, "0"),
        (0.5, None, "0.5"),
        (123456789, None, "123456789"),
        (0.123456789, 0.0, "0.123457"),
        (0.0, None, "0"),
        (math.nan, 0.1, "nan"),
    ],
)
def test_significant_prints_no_meaningless_digit(value, uncertainty, text):
    assert significant(value, uncertainty) == text


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e6))
def test_significant_rounds_by_far_less_than_the_uncertainty(value, uncertainty):
    # At most half of the last kept place: 0.15 uncertainties, or the sixth digit where that is coarser.
    sixth_digit = 10.0 ** min(math.floor(math.log10(abs(value))) - 5, 0) if value else 0.0
    error = abs(float(significant(value, uncertainty)) - value)
    assert error <= max(0.15 * uncertainty, 0.5 * sixth_digit) * (1 + 1e-6) + 1e-12
