"""Water-filling finds the allocation that brute force finds."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.codecs.quantizers.allocation import water_fill
from kvbench.codecs.quantizers.lloyd import laplace_levels


def distortion(variances: list[float], widths: tuple[int, ...] | list[int]) -> float:
    table = [error for _, error in laplace_levels()]
    return sum(variance * table[width] for variance, width in zip(variances, widths, strict=True))


@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=4), st.data(), st.integers(1, 5))
@settings(deadline=None, max_examples=80)
def test_as_good_as_brute_force(variances: list[float], data: st.DataObject, most: int) -> None:
    bits = data.draw(st.integers(0, most * len(variances)))
    widths = water_fill(torch.tensor(variances, dtype=torch.float64), bits, most).tolist()
    assert sum(widths) == bits and all(0 <= width <= most for width in widths)
    every = (choice for choice in product(range(most + 1), repeat=len(variances)) if sum(choice) == bits)
    best = min(distortion(variances, choice) for choice in every)
    assert distortion(variances, widths) == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_larger_variances_get_no_fewer_bits() -> None:
    widths = water_fill(torch.logspace(3, -4, 60), 60 * 3)
    assert (widths.diff() <= 0).all()
    assert widths[0] > 3 > widths[-1]


@pytest.mark.parametrize("bits", [-1, 17])
def test_bits_that_do_not_fit_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="do not fit 2 components"):
        water_fill(torch.ones(2), bits)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30), st.data(), st.sampled_from([2, 4]))
@settings(deadline=None, max_examples=60)
def test_words_share_a_width(variances: list[float], data: st.DataObject, together: int) -> None:
    bits = data.draw(st.integers(0, 8 * len(variances)))
    widths = water_fill(torch.tensor(sorted(variances, reverse=True)), bits, together=together)
    assert len(widths) == len(variances)
    assert bits - 8 * together <= int(widths.sum()) <= bits
    for word in widths.split(together):
        assert len(set(word.tolist())) == 1
