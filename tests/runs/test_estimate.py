"""How long trials will take."""

from __future__ import annotations

from datetime import timedelta

import pytest

from kvbench.runs.estimate import Estimate, estimate


def lasting(record, seconds: float):
    origin = record.provenance
    finished = origin.started + timedelta(seconds=seconds)
    return record.model_copy(update={"provenance": origin.model_copy(update={"finished": finished})})


def test_the_same_trial_by_other_code_says_it_best(make_trial, make_record) -> None:
    others = [lasting(make_record(compressor=f"pca:rank=0.{rank}"), rank) for rank in (2, 4, 8)]
    earlier = [lasting(make_record(code="old"), 7), *others]
    assert estimate([make_trial(code="new")], earlier) == Estimate(7, 1)


def test_else_the_median_of_its_model_and_workload(make_trial, make_record) -> None:
    earlier = [lasting(make_record(compressor=f"int:bits={bits}"), bits) for bits in (2, 3, 8)]
    trials = [make_trial(compressor="pca:rank=0.5"), make_trial(compressor="pca:rank=0.5", model="another")]
    assert estimate(trials, earlier) == Estimate(3, 1)


@pytest.mark.parametrize("status", ["failed", "oom", "interrupted"])
def test_what_failed_says_nothing(make_trial, make_record, status: str) -> None:
    assert estimate([make_trial()], [make_record(status)]) == Estimate(0, 0)
