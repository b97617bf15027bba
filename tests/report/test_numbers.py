"""Numbers as text."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.measure.results import Interval
from kvbench.report import axes, numbers
from kvbench.report.numbers import in_line, measured, short, spread


@pytest.mark.parametrize("module", [numbers, axes])
def test_the_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0


def _unrounded(value: float) -> bool:
    """False where fewer digits of the largest floats round up to infinity."""
    return not math.isfinite(value) or abs(value) < 1e308


@given(st.floats(allow_nan=True, allow_infinity=True).filter(_unrounded), st.integers(1, 6))
def test_short_keeps_the_value_to_its_digits(value, digits):
    text = short(value, digits)
    if math.isfinite(value):
        assert float(text) == pytest.approx(value, rel=0.51 * 10 ** (1 - digits), abs=1e-320)
    else:
        assert text == str(value)


@given(st.floats(1e-12, 1e12), st.floats(0, 1))
def test_measured_is_never_off_by_more_than_half_its_interval_or_its_digits(value, share):
    half = share * value
    text = measured(value, Interval(low=value - half, high=value + half))
    assert abs(float(text) - value) <= max(0.51 * half, 0.0051 * value)


def test_digits_that_the_interval_makes_meaningless_are_not_printed():
    assert measured(0.45231, Interval(low=0.41, high=0.49)) == "0.45"
    assert spread(0.45231, Interval(low=0.4111, high=0.4912)) == "[0.41, 0.49]"


def test_no_interval_is_printed_for_a_ratio_to_itself():
    assert spread(1.0, Interval(low=1.0, high=1.0)) == ""


def test_infinite_values_have_a_text():
    assert measured(math.inf, Interval(low=1.0, high=math.inf)) == "inf"
    assert spread(math.inf, Interval(low=1.0, high=math.inf)) == "[1.00, inf]"


def test_decimal_points_stand_in_line_and_words_are_left_alone():
    padded = in_line(["0.062", "12.5", "100", "≤ noise", "1.2e-5"])
    assert [text.rstrip() for text in padded] == ["0.062", "12.5", "100", "≤ noise", "1.2e-5"]
    assert padded[3] == "≤ noise"
    width = max(map(len, padded))
    ends_of_whole_part = {len(text.rjust(width).rstrip().partition(".")[0]) for text in padded if text != "≤ noise"}
    assert len(ends_of_whole_part) == 1
