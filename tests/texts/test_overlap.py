"""Shared runs of tokens between what is calibrated on and what is scored."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from kvbench.texts.overlap import overlap


@given(start=st.integers(0, 60), length=st.integers(0, 40))
def test_a_copied_passage_counts_by_its_runs(start: int, length: int) -> None:
    calibration = torch.arange(1000, 1100)[None]
    scored = torch.arange(100)
    scored[start : start + length] = calibration[0, 20 : 20 + length]
    (share,) = overlap(calibration, scored[None])
    assert share == max(length - 12, 0) / 88


def test_rows_count_alone_and_runs_do_not_cross_rows() -> None:
    calibration = torch.tensor([[*range(10)], [*range(10, 20)]])
    assert overlap(calibration, torch.arange(20)[None], run=10) == (2 / 11,)
    assert overlap(calibration, torch.stack([torch.arange(10), torch.arange(5, 15)]), run=10) == (1.0, 0.0)


def test_too_short_a_row_has_no_runs() -> None:
    assert overlap(torch.zeros(1, 20, dtype=torch.long), torch.zeros(1, 5, dtype=torch.long)) == (0.0,)
