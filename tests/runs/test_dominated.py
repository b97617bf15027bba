"""Trials that a smaller one's lack of memory makes pointless."""

import pytest

from kvbench.measure.parts.speed import SpeedWorkload
from kvbench.runs.dominated import dominates
from kvbench.runs.trials import Workload


def workload(name="w", **changes):
    speed = SpeedWorkload(prompt=64, batch=2, steps=32, rounds=1, warmup=0)
    return Workload(name=name, speed=speed.model_copy(update=changes))


@pytest.mark.parametrize(
    ("changes", "dominated"),
    [
        ({"prompt": 128}, True),
        ({"batch": 4}, True),
        ({"batch": 4, "prompt": 128}, True),
        ({"batch": 4, "prompt": 32}, False),
        ({"prompt": 32}, False),
        ({"prompt": 128, "steps": 64}, False),
        ({}, True),
    ],
)
def test_larger_in_every_size_and_the_same_in_all_else(make_record, make_trial, changes, dominated):
    record = make_record("oom", workload=workload())
    assert dominates(record, make_trial(workload=workload("other", **changes))) is dominated


def test_another_compressor_or_another_end_says_nothing(make_record, make_trial):
    large = {"workload": workload("large", prompt=128)}
    assert not dominates(make_record("oom", workload=workload()), make_trial(compressor="int:bits=2", **large))
    assert not dominates(make_record("failed", workload=workload()), make_trial(**large))
    assert dominates(make_record("killed", workload=workload()), make_trial(**large))
