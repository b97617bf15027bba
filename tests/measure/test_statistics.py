"""Known answers name their source; the rest are properties that hold for every sample."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.errors import KvbenchError
from kvbench.measure.statistics import (
    bootstrap_interval,
    cluster_bootstrap,
    coefficient_of_variation,
    mcnemar,
    paired_ratio,
    percentiles,
    significant,
)

# Efron and Tibshirani, An Introduction to the Bootstrap (1993), table 14.1: 26 children, spatial test A.
SPATIAL_TEST_A = [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41]

numbers = st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda x: round(x, 3))
samples = st.lists(numbers, min_size=2, max_size=40)
times = st.lists(st.tuples(st.floats(1e-3, 10), st.floats(1e-3, 10)), min_size=1, max_size=25)
documents = st.lists(st.lists(numbers, min_size=1, max_size=8), min_size=2, max_size=12)


def interval(values, **kwargs):
    return bootstrap_interval(values, resamples=300, **kwargs)


def slack(values):
    return 1e-9 * (1 + np.abs(values).max())


def test_bca_interval_of_the_textbook_example():
    # Table 14.2 of the same book: plug-in variance 171.5, 90 % BCa interval (115.8, 259.6).
    assert np.var(SPATIAL_TEST_A) == pytest.approx(171.5, abs=0.1)
    low, high = bootstrap_interval(SPATIAL_TEST_A, np.var, confidence=0.90, resamples=10_000)
    assert low == pytest.approx(115.8, abs=4)
    assert high == pytest.approx(259.6, abs=6)


def test_a_single_value_has_no_interval():
    assert bootstrap_interval([3.0]) is None
    assert cluster_bootstrap([[1.0, 2.0, 3.0]]) is None
    assert coefficient_of_variation([3.0]) is None


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf]])
def test_bad_values_are_one_clear_error(values):
    with pytest.raises(KvbenchError, match="bootstrap_interval needs"):
        bootstrap_interval(values)


@given(numbers, st.integers(2, 30))
def test_constant_values_have_no_width(value, n):
    low, high = bootstrap_interval([value] * n)
    assert low == high == pytest.approx(value)


@settings(deadline=None, max_examples=50)
@given(samples)
def test_interval_contains_the_mean_and_stays_within_the_sample(values):
    low, high = interval(values)
    assert low - slack(values) <= np.mean(values) <= high + slack(values)
    assert min(values) - slack(values) <= low and high <= max(values) + slack(values)


@settings(deadline=None, max_examples=50)
@given(samples, st.randoms(use_true_random=False))
def test_interval_does_not_depend_on_order(values, random):
    shuffled = random.sample(values, len(values))
    assert interval(shuffled) == interval(values)


@settings(deadline=None, max_examples=50)
@given(samples, st.sampled_from([0.25, 2.0, 1024.0]))
def test_interval_scales_with_its_values(values, factor):
    # Powers of two are exact in floating point, so nothing but the scale may change.
    low, high = interval(values)
    assert interval([factor * v for v in values]) == pytest.approx((factor * low, factor * high), rel=1e-12)


@settings(deadline=None, max_examples=30)
@given(samples)
def test_more_confidence_is_wider(values):
    narrow, wide = interval(values, confidence=0.5), interval(values, confidence=0.99)
    assert wide[1] - wide[0] >= narrow[1] - narrow[0] - slack(values)


def test_degenerate_bca_falls_back_to_percentile():
    # One outlier among equals makes the median's jackknife constant, where BCa has no answer.
    low, high = bootstrap_interval([1.0] * 19 + [2.0], np.median)
    assert low == high == 1.0


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.normal(size=30), seed=seed, resamples=500)
        hits += low <= 0 <= high
    assert 0.89 <= hits / 200 <= 0.99  # 95 % nominal; the bootstrap is a little narrow at n = 30


def test_large_samples_stay_cheap():
    low, high = bootstrap_interval(np.random.default_rng(0).normal(size=50_000), resamples=200)
    # Standard error of the mean is 1/sqrt(n); a 95 % interval is 2 x 1.96 of them wide.
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(50_000), rel=0.2)


@settings(deadline=None, max_examples=50)
@given(times)
def test_paired_ratio_is_the_median_speed_up_inside_its_interval(rounds):
    baseline, candidate = zip(*rounds, strict=True)
    result = paired_ratio(baseline, candidate, resamples=300)
    assert result.ratio == pytest.approx(np.median(np.divide(baseline, candidate)))
    assert result.n == len(rounds)
    if len(rounds) == 1:
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


@settings(deadline=None, max_examples=50)
@given(documents, st.randoms(use_true_random=False))
def test_cluster_interval_contains_the_pooled_mean_in_any_order(groups, random):
    values = np.concatenate(groups)
    low, high = cluster_bootstrap(groups, resamples=300)
    shuffled = random.sample(groups, len(groups))
    assert cluster_bootstrap(shuffled, resamples=300) == pytest.approx((low, high))
    assert min(values) - slack(values) <= low <= high + slack(values) <= max(values) + 2 * slack(values)


def test_cluster_interval_is_wider_than_a_token_interval_when_documents_differ():
    rng = np.random.default_rng(0)
    groups = [rng.normal(mean, 0.1, 200) for mean in rng.normal(size=12)]
    low, high = cluster_bootstrap(groups)
    token_low, token_high = bootstrap_interval(np.concatenate(groups))
    assert high - low > 5 * (token_high - token_low)


def test_cluster_bootstrap_of_singletons_is_the_ordinary_bootstrap():
    values = np.random.default_rng(0).normal(size=20)
    assert cluster_bootstrap([[v] for v in values]) == pytest.approx(bootstrap_interval(values))


@pytest.mark.parametrize("groups", [[], [[1.0], []]])
def test_cluster_bootstrap_needs_values_in_every_group(groups):
    with pytest.raises(KvbenchError, match="cluster_bootstrap needs"):
        cluster_bootstrap(groups)


def test_percentiles_interpolate():
    result = percentiles(range(101))
    assert (result.p50, result.p90, result.p99) == (50.0, 90.0, 99.0)


def test_coefficient_of_variation_uses_the_sample_deviation():
    # mean 2, squared deviations 1 + 0 + 1 over n - 1 = 2: deviation 1
    assert coefficient_of_variation([1.0, 2.0, 3.0]) == pytest.approx(0.5)
    with pytest.raises(KvbenchError, match="mean above zero"):
        coefficient_of_variation([-1.0, 1.0])


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_two_sided_sign_test(only_a, only_b):
    # Definition, in exact arithmetic: twice the binomial tail at one half, at most 1.
    n, k = only_a + only_b, min(only_a, only_b)
    tail = Fraction(sum(math.comb(n, i) for i in range(k + 1)), 2**n)
    assert mcnemar(only_a, only_b) == pytest.approx(float(min(1, 2 * tail)))
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a)


def test_mcnemar_refuses_negative_counts():
    with pytest.raises(KvbenchError, match="zero or more"):
        mcnemar(-1, 3)


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
