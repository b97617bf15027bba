"""An interval that is called 95 % covers the truth at least 92 times in 100, of however many documents it is made.

Documents' mean KLDs are positive with a long upper tail, and a text may mix domains; changes of the negative
log-likelihood have both signs. The families are as skewed as such values get or more: a lognormal of sigma 1 has a
skewness of 6 and a tenth of its documents above 3.6 times the median.
"""

from collections.abc import Callable

import numpy as np
import pytest

from kvbench.measure.statistics import HALL_LEVEL, LEAST_FOR_MEAN, hall_interval, mean_interval, median_interval

SAMPLES = 20_000
"""The share of hits of so many has a standard error of 0.2 %."""
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def lognormal(sigma: float) -> tuple[Draw, float]:
    return lambda rng, size: rng.lognormal(0, sigma, size), np.exp(sigma**2 / 2)


def gamma(shape: float) -> tuple[Draw, float]:
    return lambda rng, size: rng.gamma(shape, 1, size), shape


def domains(times: float, share: float) -> tuple[Draw, float]:
    """A ``share`` of the documents is of a domain where a method loses so many ``times`` as much."""
    mean = np.exp(0.5**2 / 2) * (times * share + 1 - share)
    return lambda rng, size: rng.lognormal(0, 0.5, size) * np.where(rng.random(size) < share, times, 1), mean


def signed(noise: float, sigma: float, sign: int) -> tuple[Draw, float]:
    """A loss (sign 1) or gain (sign -1) in every document, with ``noise`` around it."""
    mean = sign * np.exp(sigma**2 / 2)
    return lambda rng, size: sign * rng.lognormal(0, sigma, size) + rng.normal(0, noise, size), mean


FAMILIES = {
    "normal": (lambda rng, size: rng.normal(0, 1, size), 0.0),
    "lognormal 0.5": lognormal(0.5),
    "lognormal 1": lognormal(1.0),
    "gamma 1": gamma(1),
    "gamma 2": gamma(2),
    "half the documents 3 times": domains(3, 0.5),
    "half the documents 5 times": domains(5, 0.5),
    "a fifth of the documents 10 times": domains(10, 0.2),
    "signed loss": signed(1.0, 0.75, 1),
    "signed gain": signed(0.5, 0.75, -1),
}


def coverage(family: str, n: int) -> float:
    draw, truth = FAMILIES[family]
    rng = np.random.default_rng(n)
    low, high = hall_interval(draw(rng, (SAMPLES, n)), HALL_LEVEL)
    return float(np.mean((low <= truth) & (truth <= high)))


@pytest.mark.parametrize("family", FAMILIES)
def test_intervals_of_means_cover_them_for_every_number_of_documents(family: str):
    covered = {n: round(coverage(family, n), 3) for n in (*range(LEAST_FOR_MEAN, 17), 20, 24, 32, 64, 100)}
    assert min(covered.values()) >= 0.92, covered


def test_the_printed_interval_is_the_simulated_one():
    values = np.random.default_rng(0).lognormal(0, 1, 15)
    assert mean_interval(values) == pytest.approx([float(end) for end in hall_interval(np.sort(values), HALL_LEVEL)])


def test_fewer_documents_than_the_least_could_not_be_covered():
    assert coverage("a fifth of the documents 10 times", LEAST_FOR_MEAN - 2) < 0.92


@pytest.mark.parametrize("n", [6, 7, 9, 12, 25, 60])
def test_intervals_of_medians_cover_them_whatever_the_distribution(n: int):
    rng = np.random.default_rng(n)
    intervals = [median_interval(sample) for sample in rng.lognormal(0, 1, (1000, n))]
    assert np.mean([low <= 1 <= high for low, high in intervals]) >= 0.93  # at least 0.95, of 1,000 samples
