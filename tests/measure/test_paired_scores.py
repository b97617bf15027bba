"""Paired scores: exact tests, intervals that cover, and verdicts that follow from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kvbench.errors import KvbenchError
from kvbench.measure.paired_scores import LEVEL, PairedDifference, holm, sign_flip


@given(lost=st.integers(0, 40), gained=st.integers(0, 40), same=st.integers(0, 20))
def test_of_hits_and_misses_it_is_mcnemars_exact_test(lost: int, gained: int, same: int) -> None:
    expected = float(stats.binom.cdf(gained, lost + gained, 0.5)) if lost + gained else 1.0
    assert sign_flip([-1.0] * lost + [1.0] * gained + [0.0] * same) == pytest.approx(expected)


@given(st.lists(st.sampled_from([-1, -0.75, -2 / 3, -0.5, -0.1, 0, 0.25, 1 / 3, 0.8, 1]), min_size=1, max_size=10))
def test_every_pattern_of_signs_is_counted(differences: list[float]) -> None:
    patterns = np.array(np.meshgrid(*[[-1, 1]] * len(differences))).reshape(len(differences), -1).T
    sums = patterns @ np.abs(differences)
    assert sign_flip(differences) == pytest.approx(float((sums <= sum(differences) + 1e-9).mean()))


@pytest.mark.parametrize("n", [4, 6, 10, 30, 130])
@pytest.mark.parametrize(("lost", "gained"), [(0.0, 0.0), (0.02, 0.0), (0.02, 0.02), (0.1, 0.03), (0.4, 0.1)])
@pytest.mark.parametrize("parts", [1, 4])
def test_intervals_cover(n: int, lost: float, gained: float, parts: int) -> None:
    """At least 92 %, at every number of samples, of rare and common losses, of hits and of shares."""
    random = np.random.default_rng(7)
    draws = random.choice([-1.0, 1.0, 0.0], p=[lost, gained, 1 - lost - gained], size=(1500, n, parts)).mean(-1)
    inside = 0
    for row in draws:
        result = PairedDifference.of(np.maximum(-row, 0).tolist(), np.maximum(row, 0).tolist())
        inside += result.low <= gained - lost <= result.high
    assert inside / len(draws) >= 0.92


def test_false_alarms_are_as_rare_as_promised() -> None:
    random = np.random.default_rng(3)
    alarms = 0
    for _ in range(400):
        tasks = [random.choice([-1.0, 1.0, 0.0], p=[0.15, 0.15, 0.7], size=10) for _ in range(13)]
        alarms += min(holm([sign_flip(task.tolist()) for task in tasks])) < LEVEL
    assert alarms / 400 <= LEVEL


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def verdict_of(before: list[float], after: list[float], margin: float = 0.05) -> str:
    difference = PairedDifference.of(before, after)
    return difference.verdict(margin, difference.p_harm)


def test_verdicts() -> None:
    hits = [1.0] * 130
    assert verdict_of(hits, hits) == "unharmed"
    assert verdict_of([1.0] * 10, [1.0] * 10) == "undecided"  # too few to exclude a loss of 5 %
    assert verdict_of([1.0] * 10, [0.0] * 10) == "harmed"
    assert verdict_of([1.0] * 10, [0.75] * 10) == "harmed"
    assert verdict_of(hits, [0.0] * 4 + [1.0] * 126) == "undecided"


def test_more_samples_decide_as_often_as_promised() -> None:
    """Begun with few, the number that is named decides in about four of five suites."""
    random = np.random.default_rng(5)
    begun = PairedDifference.of([1.0] * 20, [0.0] * 5 + [1.0] * 15)
    more = begun.samples_needed(0.05)
    decided = 0
    for _ in range(300):
        after = (random.random(more) >= 0.25).astype(float).tolist()
        decided += verdict_of([1.0] * more, after) != "undecided"
    assert 20 < more < 100 and decided / 300 >= 0.75


@pytest.mark.parametrize(("before", "after"), [([], []), ([1.0], []), ([2.0], [1.0]), ([float("nan")], [0.0])])
def test_what_is_no_pair_of_scores_is_refused(before: list[float], after: list[float]) -> None:
    with pytest.raises(KvbenchError):
        PairedDifference.of(before, after)
