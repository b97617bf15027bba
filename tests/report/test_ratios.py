"""Ratios of speeds in tables."""

from __future__ import annotations

import pytest

from kvbench.measure.results import Interval
from kvbench.report.columns.speed import speed_up


@pytest.mark.parametrize(
    ("ratio", "low", "high", "text", "spread"),
    [
        (1.058, 0.91, 1.21, "1.06", "[0.91, 1.21]"),
        (0.9, 0.2, 3.0, "0.90", "[0.20, 3.00]"),
        (12.345, 9.0, 15.0, "12.3", "[9.0, 15.0]"),
    ],
)
def test_ratios_below_ten_have_two_decimals_however_wide_their_interval(ratio, low, high, text, spread):
    cell = speed_up(ratio, Interval(low=low, high=high))
    assert cell is not None and (cell.text, cell.spread) == (text, spread)
