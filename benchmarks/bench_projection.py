"""Decode steps of a small model on this processor beside what ``kvbench project --device cpu`` says of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import ARMS, StepCase, arm, bench, speed_bench
from racing import Race, replayed

from kvbench.hardware.devices import Accelerator
from kvbench.measure.speed import Times
from kvbench.measure.statistics import percentiles
from kvbench.projection.caches import cache_cost
from kvbench.projection.parallel import Parallel
from kvbench.projection.shape import shape_of
from kvbench.projection.step_time import Setting, step
from kvbench.projection.this_machine import this_processor

pytestmark = pytest.mark.benchmark(timer=replayed)
COMPARED = ("none", "int8", "int4", "3-bit latents, bands")


CASES = {
    "tiny": [StepCase(2, 256, 1, 2, tiny=True)],
    "quick": [StepCase(1, 1024, 4, 5), StepCase(1, 8192, 4, 5), StepCase(8, 4096, 2, 5)],
    "full": [StepCase(1, 1024, 8, 15), StepCase(1, 8192, 8, 15), StepCase(8, 4096, 4, 15)],
}


@pytest.fixture(scope="module")
def device() -> Accelerator:
    """Its bandwidth, its peak and what it reaches, measured in this process."""
    return this_processor()


@pytest.fixture(scope="module")
def race(case: StepCase, device: Accelerator) -> Race:
    """All arms on one prompt, a few steps at a time."""
    speed = speed_bench(case.prompt, case.tiny, case.batch, case.steps, case.rounds)
    times = speed.interleave({name: arm(name, case.tiny) for name in COMPARED})
    facts = {name: _facts(case, times, name, device) for name in COMPARED}
    title = f"projected and measured step of {bench(case.tiny).name}, {case.batch} × {case.tokens:,} tokens"
    return Race(title, {name: times.rounds(name) for name in COMPARED}, ("none",), facts)


@pytest.mark.parametrize("arm", COMPARED)
def test_projection(benchmark: Any, race: Race, arm: str) -> None:
    race.report(benchmark, arm)


def _facts(case: StepCase, times: Times, name: str, device: Accelerator) -> dict[str, Any]:
    """The projected step, and its share of the median one that was measured."""
    model = bench(case.tiny).loaded.model
    setting = Setting(shape_of("model", model.config), Parallel(), "fp32", device)
    assert model.dtype == torch.float32
    cost = cache_cost(ARMS[name][0], setting.shape, 1, setting.width)
    projected = step(setting, cost, case.tokens, case.batch)
    measured_s = percentiles([taken for turn in times.steps[name] for taken in turn]).p50
    limit, of, _ = projected.binds
    print(f"\n{case} {name}: {projected.seconds / measured_s:.2f} of the measured step, bound by {limit}: {of}")
    return {
        "spec": ARMS[name][0],
        "attention": times.attention(name),
        "projected_s": projected.seconds,
        "projected_over_measured": projected.seconds / measured_s,
        "bound_by": f"{limit}: {of}",
    }
