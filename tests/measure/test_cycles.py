"""Block cycles: how long they are, when a step encoded, and how sure a ratio of mean steps is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from driving import calibrated, subject, token_ids

from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.measure.cycles import (
    cycle_of,
    encode_s_per_token,
    encoded_tokens,
    grew,
    require_whole_cycles,
    speed_up,
)
from kvbench.measure.prompt import exact_prompt

SPECS = {
    "none": 1,
    "hf": 1,
    "int:bits=4,sinks=2,recent=4,block=8": 8,
    "kivi:bits=2,sinks=2,recent=4,block=8": 32,
    "streaming:recent=8,block=8": 8,
    "pca:rank=0.5,recent=8,block=16": 16,
    "xkv:rank=0.5,layers=2,recent=8,block=8": 8,
}


@pytest.mark.parametrize(("spec", "cycle"), SPECS.items())
@pytest.mark.parametrize("prompt", [90, 97])
def test_any_cycle_of_steps_encodes_once_wherever_the_prompt_ends(spec: str, cycle: int, prompt: int):
    one = subject("llama", torch.float32)
    plan = None if spec == "hf" else parse(spec).fit(one.geometry, calibrated(one))
    arm = Arm.of(spec, one.model, one.geometry, plan)
    counts = []
    with arm.entered():
        cache = arm.fill(exact_prompt(one.model, one.geometry, token_ids(1, prompt)))
        counts.append(encoded_tokens(cache))
        for _ in range(2 * cycle):
            arm.forward(token_ids(1, 1), cache)
            counts.append(encoded_tokens(cache))
    assert cycle_of(cache) == cycle_of(arm.new_cache()) == cycle
    assert sum(grew(counts)) == (2 if cycle > 1 else 0)
    layers = len(one.geometry.layers)
    assert counts[cycle] - counts[0] == (cycle * layers if cycle > 1 else 0)


def test_a_quantized_cache_of_transformers_has_cycles_too():
    pytest.importorskip("optimum.quanto")
    one = subject("llama", torch.float32, head_dim=64)
    arm = Arm.of("hf-quanto", one.model, one.geometry, None, parse("hf-quanto:residual=8").stock)
    cache, counts = arm.fill(exact_prompt(one.model, one.geometry, token_ids(1, 64))), []
    for _ in range(17):
        counts.append(encoded_tokens(cache))
        arm.forward(token_ids(1, 1), cache)
    assert cycle_of(cache) == 8 and sum(grew(counts)) == 2


def test_whole_cycles_are_taken_and_others_refused_with_what_would_do():
    require_whole_cycles("a", 32, 4, 16)
    require_whole_cycles("a", 32, 64, 3)
    require_whole_cycles("none", 1, 7, 3)
    with pytest.raises(
        KvbenchError, match=r"a encodes every 32 tokens, and 6 rounds of 4 steps \(24\) .* rounds to 8 "
    ):
        require_whole_cycles("a", 32, 4, 6)
    with pytest.raises(KvbenchError, match=r"set rounds to 8 or 16 under \[workload.speed\], or steps to 32"):
        require_whole_cycles("a", 32, 4, 9)


def test_encoding_is_the_mean_of_all_steps_above_that_of_steps_without_it():
    steps, encoded = [1.0, 1.0, 1.0, 9.0], [False, False, False, True]
    assert encode_s_per_token(steps, encoded) == pytest.approx(2.0)
    assert encode_s_per_token(steps, [False] * 4) is None and encode_s_per_token(steps, [True] * 4) is None


def test_a_ratio_of_means_weighs_every_step_alike():
    ratio = speed_up([2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 5.0], [0, 0, 0, 1])
    assert ratio.ratio == pytest.approx(1.0) and ratio.n == 4
    assert ratio.low is None, "one round with encoding says nothing of how such rounds differ"


def test_a_ratio_without_noise_has_no_width():
    ratio = speed_up([2.0] * 8, [1.0, 1.0, 1.0, 5.0] * 2, [0, 0, 0, 1] * 2)
    assert (ratio.low, ratio.high) == pytest.approx((1.0, 1.0))


def rounds(noise: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Steps of mean about 1 with a long tail to the right."""
    if noise == "a step in 33 takes three times as long":
        return generator.lognormal(0, 0.1, shape) * np.where(generator.random(shape) < 0.03, 3, 1)
    if noise == "lognormal":
        return generator.lognormal(0, 0.5, shape)
    return 1 + generator.exponential(0.5, shape)


@pytest.mark.parametrize("cycles", [2, 3, 6, 10])
@pytest.mark.parametrize("extra", [0, 3, 15], ids=lambda extra: f"encoding takes {extra} steps")
@pytest.mark.parametrize("noise", ["a step in 33 takes three times as long", "lognormal", "exponential"])
def test_intervals_hold_the_ratio_in_at_least_92_per_cent(cycles: int, extra: int, noise: str):
    """Eight rounds of four steps to a cycle, one of which encodes; a drift that both arms of a round share."""
    trials, per_cycle, steps, slower = 1000, 8, 4, 1.3
    generator = np.random.default_rng(cycles * 100 + extra)
    shape = (trials, cycles * per_cycle, steps)
    encodes = np.arange(shape[1]) % per_cycle == 0
    baseline, candidate = rounds(noise, shape, generator), rounds(noise, shape, generator) * slower
    candidate[:, encodes, 0] *= 1 + extra
    drift = generator.lognormal(0, 0.1, (*shape[:2], 1))
    truth = 1 / (slower * (1 + extra / (per_cycle * steps)))
    covered = 0
    for before, after in zip((baseline * drift).mean(2), (candidate * drift).mean(2), strict=True):
        ratio = speed_up(before, after, encodes.astype(int))
        assert ratio.low is not None and ratio.high is not None
        covered += ratio.low <= truth <= ratio.high
    assert covered / trials >= 0.92
