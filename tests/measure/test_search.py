"""Searching a knob by measured KLD: the target is met, with few measurements, or the nearest is told."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.compressors.compressor import Compressor
from kvbench.errors import KvbenchError
from kvbench.measure.search import CLOSE, Search


class Curve:
    """A KLD that falls exponentially in the bits of a spec's first part, and counts how often it is measured."""

    def __init__(self, slope: float = 1.3, refused_below: float = 0.0) -> None:
        self.slope, self.refused_below, self.calls = slope, refused_below, 0

    def __call__(self, compressor: Compressor) -> float:
        self.calls += 1
        part = compressor.parts[0]
        bits = part.bits if hasattr(part, "bits") else 8 * part.rank
        if bits < self.refused_below:
            raise KvbenchError("too few bits")
        return math.exp(-self.slope * bits)


@settings(deadline=None)
@given(st.floats(0.3, 3), st.floats(0.5, 7.5), st.sampled_from(["kvtc", "kvtc:recent=0", "pca+int:bits=4"]))
def test_numbers_meet_the_target_in_few_measurements(slope: float, bits: float, method: str) -> None:
    curve, target = Curve(slope), math.exp(-slope * bits)
    reached = curve(Search(method, curve).solve(target))
    assert (1 - 2 * CLOSE) * target <= reached <= target
    assert curve.calls <= 10


def test_choices_are_the_smallest_that_meets_it() -> None:
    curve = Curve()
    assert str(Search("kivi:recent=0", curve).solve(math.exp(-1.3 * 2.5))) == "kivi:bits=3,recent=0"
    assert str(Search("kivi", Curve()).solve(10)) == "kivi:bits=2"


def test_a_lax_target_takes_the_least_setting() -> None:
    assert Search("kvtc", Curve()).solve(100).parts[0].bits == 8 / 64


def test_settings_that_a_method_refuses_are_stepped_around() -> None:
    solved = Search("kvtc", Curve(refused_below=3)).solve(math.exp(-1.3 * 2.9))
    assert 3 <= solved.parts[0].bits < 3.2


def test_unreachable_targets_say_the_nearest() -> None:
    with pytest.raises(KvbenchError, match=r"kvtc does not get down to a KLD of 1e-09; the nearest is .* kvtc:bits=8"):
        Search("kvtc", Curve()).solve(1e-9)


def test_a_method_that_never_works_gives_its_own_reason() -> None:
    with pytest.raises(KvbenchError, match="too few bits"):
        Search("kvtc", Curve(refused_below=99)).solve(0.1)


def test_a_closed_method_has_nothing_to_search() -> None:
    with pytest.raises(KvbenchError, match="leaves nothing to search"):
        Search("kvtc:bits=3", Curve())
