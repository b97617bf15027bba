"""The roofline of a step by hand, on a device of round numbers; and what must hold whatever the numbers are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.hardware.devices import Accelerator, Measured, accelerator
from kvbench.models.public_configs import read_config
from kvbench.projection.absorption import absorption
from kvbench.projection.caches import cache_cost
from kvbench.projection.fits import largest_batch, longest_context, room
from kvbench.projection.parallel import Parallel
from kvbench.projection.shape import Shape, shape_of
from kvbench.projection.step_time import Limits, Setting, Step, step

LLAMA, DEEPSEEK = (shape_of(*read_config(name)) for name in ("llama-3.1-8b", "deepseek-v3"))
ROUND = Accelerator(
    key="round",
    name="a device of round numbers",
    memory=100e9,
    bandwidth=1e12,
    operations={"fp8": 2e15, "bf16": 1e15, "fp32": 1e14},
    link=1e11,
    node=8,
    network=1e10,
    source="made up",
)


def setting_of(shape: Shape = LLAMA, device: Accelerator = ROUND, **changes: object) -> Setting:
    return replace(Setting(shape, Parallel(), "bf16", device), **changes)


def step_of(setting: Setting, tokens: int, batch: int, spec: str = "none") -> Step:
    return step(setting, cache_cost(spec, setting.shape, setting.parallel.tensor, setting.width), tokens, batch)


def test_a_machine_at_hand_reads_weights_as_measured_and_its_layers_take_their_calls():
    at_hand = replace(ROUND, measured=Measured(lambda rows, width: 1e11 * width / rows, lambda rows: 1e-3 * rows))
    paper, measured = (step_of(setting_of(device=device), 10_000, 4) for device in (ROUND, at_hand))
    weights = next(phase for phase in measured.phases if phase.reads == "weights")
    assert weights.memory_s == pytest.approx(weights.read_bytes / (1e11 * 4096 / 4))
    assert measured.calls_s == pytest.approx(32 * 4e-3) and paper.calls_s == 0
    assert measured.phases[1:] == paper.phases[1:]
    assert measured.seconds == pytest.approx(sum(phase.seconds for phase in measured.phases) + measured.calls_s)
    half = step_of(setting_of(device=at_hand, limits=Limits(memory=0.5)), 10_000, 4)
    assert half.phases[0].memory_s == pytest.approx(2 * weights.memory_s)
    slow = replace(at_hand, measured=Measured(lambda rows, width: 1e15, lambda rows: 1.0))
    assert step_of(setting_of(device=slow), 10_000, 4).binds[:2] == ("calls", "layers")


def test_a_dense_step_by_hand():
    """8,030,261,248 parameters without the embedding's 128,256 · 4,096, 2 bytes and 2 operations each; 131,072 bytes a
    token, and 32 layers · 32 heads · 256 channels · 2 operations."""
    taken = step_of(setting_of(), 10_000, 4)
    weights, attention = taken.phases
    active = 8_030_261_248 - 128_256 * 4096
    assert weights.read_bytes == 2 * active and weights.memory_s == pytest.approx(2 * active / 1e12)
    assert weights.operations == 4 * 2 * active and weights.compute_s == pytest.approx(8 * active / 1e15)
    assert attention.read_bytes == 4 * 10_000 * 131_072
    assert attention.operations == 4 * 10_000 * 32 * 32 * 256 * 2
    assert taken.messages == {}
    assert taken.seconds == pytest.approx((2 * active + 4 * 10_000 * 131_072) / 1e12)
    assert taken.tokens_per_s == pytest.approx(4 / taken.seconds)
    assert taken.binds == ("memory", "weights", pytest.approx(weights.seconds / taken.seconds))


def test_what_binds_follows_the_device():
    slow_arithmetic = replace(ROUND, operations={"bf16": 1e12})
    assert step_of(setting_of(), 100_000, 8).binds[:2] == ("memory", "cache")
    assert step_of(setting_of(device=slow_arithmetic), 100, 64).binds[:2] == ("compute", "projections")
    assert step_of(setting_of(DEEPSEEK, slow_arithmetic), 100_000, 64, "mla").binds[:2] == ("compute", "attention")
    slow_links = replace(ROUND, link=1e6)
    assert step_of(setting_of(device=slow_links, parallel=Parallel(8)), 100, 64).binds[:2] == (
        "interconnect",
        "all-reduce",
    )


def test_all_reduce_by_hand():
    """Two a layer, each 2 · 7 / 8 of 16 rows of 4,096 numbers in 2 bytes; beyond a node over the network."""
    taken = step_of(setting_of(parallel=Parallel(8)), 1000, 16)
    assert taken.messages == {"all-reduce": pytest.approx(2 * 32 * 2 * 7 / 8 * 16 * 4096 * 2 / 1e11)}
    across = step_of(setting_of(parallel=Parallel(16)), 1000, 16)
    assert across.messages == {"all-reduce": pytest.approx(2 * 32 * 2 * 15 / 16 * 16 * 4096 * 2 / 1e10)}


def test_all_to_all_by_hand():
    """One of two devices has 128 of 256 experts: a token with 8 has any of them there unless all 8 are among the other
    128. 2 rows a device, 7,168 numbers, 2 bytes to the expert and 2 back, in 58 layers."""
    missed = 1.0
    for drawn in range(8):
        missed *= (128 - drawn) / (256 - drawn)
    taken = step_of(setting_of(DEEPSEEK, parallel=Parallel(1, 2)), 1000, 4, "mla")
    assert taken.messages == {"all-to-all": pytest.approx((1 - missed) * 2 * 7168 * 4 * 58 / 1e11)}


def test_experts_that_are_hit_by_hand():
    """One token goes to 8 of 256; two to 8 + 8 · 248 / 256 on average. FP8 numbers take a byte."""
    size = 58 * 3 * 7168 * 2048
    for batch, hit in ((1, 8), (2, 8 + 8 * 248 / 256)):
        experts = step_of(setting_of(DEEPSEEK, precision="fp8"), 10, batch, "mla").phases[1]
        assert (experts.name, experts.read_bytes) == ("experts", pytest.approx(hit * size))
        assert experts.operations == pytest.approx(batch * 8 * size * 2)


def test_weights_of_a_device_by_hand():
    assert setting_of().weight_bytes == 2 * LLAMA.weights.total
    assert setting_of(precision="fp32").weight_bytes == 4 * LLAMA.weights.total
    wide = LLAMA.weights.embedding + LLAMA.weights.head + LLAMA.weights.norms
    assert setting_of(precision="fp8").weight_bytes == LLAMA.weights.total + wide
    eight = setting_of(parallel=Parallel(8)).weight_bytes
    assert eight == pytest.approx(2 * (LLAMA.weights.total + 7 * LLAMA.weights.norms) / 8)


def test_expert_groups_share_rows_and_hold_everything_else():
    """16 devices with experts in two groups of 8: each group attends to half of the rows."""
    spread = setting_of(DEEPSEEK, parallel=Parallel(8, 16), precision="fp8")
    assert (spread.parallel.devices, spread.parallel.groups, spread.parallel.rows(9)) == (16, 2, 5)
    one_group = setting_of(DEEPSEEK, parallel=Parallel(8), precision="fp8")
    experts = DEEPSEEK.weights.experts
    assert experts is not None
    assert one_group.weight_bytes - spread.weight_bytes == pytest.approx(experts.total / 16)


def test_efficiency_is_a_share_of_each_limit():
    best = step_of(setting_of(parallel=Parallel(2)), 1000, 4)
    half = step_of(setting_of(parallel=Parallel(2), limits=Limits(0.5, 0.5, 0.5)), 1000, 4)
    assert half.seconds == pytest.approx(2 * best.seconds)
    memory = step_of(setting_of(limits=Limits(memory=0.8)), 1000, 4)
    assert memory.seconds == pytest.approx(step_of(setting_of(), 1000, 4).seconds / 0.8)


SPECS = st.sampled_from(["none", "int:bits=4", "snapkv:budget=0.5"])
BATCHES, LENGTHS = st.integers(1, 512), st.integers(200, 131_000)


@given(SPECS, LENGTHS, LENGTHS, BATCHES)
def test_longer_contexts_take_no_less_time_and_hold_no_more_rows(spec: str, first: int, second: int, batch: int):
    setting, (short, long) = setting_of(), sorted((first, second + 512))
    cost = cache_cost(spec, LLAMA, 1, 2)
    slack = 1 + 1e-9 if spec != "snapkv:budget=0.5" else 1.05  # it evicts a block at a time
    assert step(setting, cost, short, batch).seconds <= step(setting, cost, long, batch).seconds * slack
    if spec == "none":
        assert largest_batch(setting, cost, short) >= largest_batch(setting, cost, long)


@given(LENGTHS, BATCHES, st.floats(0.1, 10), st.sampled_from(["bandwidth", "link", "network"]))
def test_faster_memory_and_links_take_no_more_time(tokens: int, batch: int, factor: float, what: str):
    faster = replace(ROUND, **{what: getattr(ROUND, what) * max(factor, 1 / factor)})
    for parallel in (Parallel(), Parallel(16)):
        before, after = (
            step_of(setting_of(device=device, parallel=parallel), tokens, batch) for device in (ROUND, faster)
        )
        assert after.seconds <= before.seconds


@given(LENGTHS, st.floats(0.2, 1))
def test_the_largest_batch_fits_and_one_row_more_does_not(tokens: int, usable: float):
    setting = setting_of()
    for spec in ("none", "int:bits=4"):
        cost = cache_cost(spec, LLAMA, 1, 2)
        rows, left = largest_batch(setting, cost, tokens, usable), room(setting, cost, usable)
        assert rows == 0 or cost.size(tokens, rows) <= left
        assert cost.size(tokens, rows + 1) > left


@given(st.integers(1, 200))
def test_the_longest_context_fits_and_one_token_more_does_not(batch: int):
    setting, cost = setting_of(), cache_cost("none", LLAMA, 1, 2)
    tokens, left = longest_context(setting, cost, batch), room(setting, cost)
    assert cost.size(tokens, batch) <= left
    assert tokens == LLAMA.context or cost.size(tokens + 1, batch) > left


def test_nothing_fits_where_weights_do_not():
    setting = setting_of(DEEPSEEK)
    cost = cache_cost("mla", DEEPSEEK, 1, 2)
    assert room(setting, cost) < 0
    assert largest_batch(setting, cost, 4096) == 0 and longest_context(setting, cost, 1) == 0


def test_absorbed_against_rebuilt_attention_by_hand():
    """Per head and cached token, multiply-adds: 576 + 512 absorbed; 192 + 128 rebuilt after 512 · 256. They meet at
    131,072 / 768 = 170.7 new tokens. Absorbed, one reads 1,152 bytes for 128 · 1,088 · 2 operations: 242 a byte, beyond
    what an H20 does in that time (37) and within an H100's means (295)."""
    two = absorption(setting_of(DEEPSEEK))
    assert two is not None and two.break_even == 171
    assert (two.absorbed, two.rebuilt, two.rebuilding) == (128 * 2 * 1088, 128 * 2 * 320, 128 * 2 * 512 * 256)
    bound = {name: absorption(setting_of(DEEPSEEK, accelerator(name))) for name in ("h20", "h100")}
    assert bound["h20"] is not None and bound["h20"].memory_bound == pytest.approx(37 / 241.8, rel=0.01)
    assert bound["h100"] is not None and bound["h100"].memory_bound == pytest.approx(295.3 / 241.8, rel=0.01)
    assert absorption(setting_of(LLAMA)) is None
