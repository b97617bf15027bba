"""Runs of components by dynamic programming: the budget holds, and no other cut of a small case is better."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.codecs.quantizers.block_allocation import RANGES, SCALES, WIDTHS, block_runs


def spectrum(count: int, slope: float) -> list[float]:
    return [2.0 ** (-slope * place) for place in range(count)]


def error(variances: list[float], runs: list[tuple[int, int]]) -> float:
    """Expected error, dropped components included."""
    total, place = 0.0, 0
    for components, width in runs:
        size = min(size for size in RANGES if size >= components)
        share = min(1.0, RANGES[size] ** 2 / 12 / (2**width - 1) ** 2)
        total += share * sum(variances[place : place + components])
        place += components
    return total + sum(variances[place:])


def cost(runs: list[tuple[int, int]]) -> int:
    return sum(components * width + SCALES for components, width in runs)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 400), slope=st.floats(0, 0.3), share=st.floats(0.1, 8), more=st.floats(0, 2))
def test_the_budget_holds_and_more_of_it_never_hurts(count: int, slope: float, share: float, more: float) -> None:
    variances = spectrum(count, slope)
    runs = [block_runs(variances, int(bits * count)) for bits in (share, share + more)]
    assert cost(runs[0]) <= max(int(share * count), SCALES + 1)
    assert sum(components for components, _ in runs[1]) <= count
    assert error(variances, runs[1]) <= error(variances, runs[0]) * (1 + 1e-9)


@pytest.mark.parametrize("bits", [100, 200, 350])
def test_no_cut_of_three_words_is_better(bits: int) -> None:
    variances = spectrum(48, 0.1)
    options = [[(16, width) for width in widths] for n in (1, 2, 3) for widths in itertools.product(WIDTHS, repeat=n)]
    options += [[(48, width)] for width in WIDTHS]
    best = min(error(variances, runs) for runs in options if cost(runs) <= bits)
    assert error(variances, block_runs(variances, bits)) <= best * (1 + 1e-9)


def test_a_flat_tail_is_dropped_and_a_strong_head_is_not() -> None:
    runs = block_runs([100.0] * 16 + [1e-4] * 176, 192)
    assert runs == [(16, 8)] or sum(components for components, _ in runs) == 16


def test_few_bits_still_keep_something() -> None:
    assert block_runs([1.0, 0.5], 0) == [(1, 1)]
