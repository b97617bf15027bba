"""Whole decode steps of a model on caches of every kind, on the same weights and the same prompt."""

from __future__ import annotations

from typing import Any

import pytest
from models import ARMS, StepCase, arm, bench, speed_bench
from racing import Race, replayed

from kvbench.measure.memory import walk
from kvbench.measure.roofline import roofline
from kvbench.measure.speed import Times
from kvbench.measure.statistics import percentiles

pytestmark = pytest.mark.benchmark(timer=replayed)


CASES = {
    "tiny": [StepCase(2, 256, 1, 2, tiny=True)],
    "quick": [StepCase(8, 4096, 2, 9), StepCase(1, 8192, 4, 9)],
    "full": [StepCase(1, 2048, 8, 15), StepCase(1, 8192, 8, 15), StepCase(8, 4096, 4, 15)],
}


@pytest.fixture(scope="module")
def race(case: StepCase) -> Race:
    """All arms on one prompt, a few steps at a time."""
    speed = speed_bench(case.prompt, case.tiny, case.batch, case.steps, case.rounds)
    times = speed.interleave({name: arm(name, case.tiny) for name in ARMS})
    facts = {name: _facts(case, times, name) for name in ARMS}
    title = f"decode step of {bench(case.tiny).name}, {case.batch} × {case.tokens:,} tokens"
    return Race(title, {name: times.rounds(name) for name in ARMS}, ("folded", "none", "none, 16 bit", "hf"), facts)


@pytest.mark.parametrize("arm", ARMS)
def test_decode(benchmark: Any, race: Race, arm: str) -> None:
    race.report(benchmark, arm)


def _facts(case: StepCase, times: Times, name: str) -> dict[str, Any]:
    """Bytes, the roofline, and how steady steps are; the mean over the median is what encoding adds now and then."""
    decode_arm, cache = arm(name, case.tiny), times.caches[name]
    steps = [step for turn in times.steps[name] for step in turn]
    spread = percentiles(steps)
    elements = case.batch * decode_arm.geometry.elements(cache.get_seq_length())
    limits = roofline(decode_arm, cache, case.batch, spread.p50)
    return {
        "spec": ARMS[name][0],
        "attention": times.attention(name),
        "ratio_to_16_bit": 2 * elements / walk(cache).total,
        "p99_over_p50": spread.p99 / spread.p50,
        "mean_over_p50": sum(steps) / len(steps) / spread.p50,
        "ceiling": None if limits is None else limits.ceiling,
        "share_of_roofline": None if limits is None else limits.achieved,
        "roofline": None if limits is None else limits.model_dump(),
    }
