"""Unpacking changes no byte, in whatever order widths come and however many columns a run has."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unpacking_cases import check_unpacking

runs = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 40)), min_size=1, max_size=6).filter(
    lambda runs: any(width for width, _ in runs)
)
"""Widths, and how many components in a row have them."""


@given(runs, st.sampled_from([1, 4]), st.integers(1, 8), st.booleans())
@settings(deadline=None, max_examples=150)
def test_any_widths(runs: Sequence[tuple[int, int]], together: int, groups: int, looked_up: bool) -> None:
    check_unpacking([width for width, count in runs for _ in range(together * count)], groups, looked_up)


@pytest.mark.parametrize("looked_up", [False, True])
@pytest.mark.parametrize("width", range(1, 9))
def test_one_width(width: int, looked_up: bool) -> None:
    check_unpacking([width] * 48, 8, looked_up)
