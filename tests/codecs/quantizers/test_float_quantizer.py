"""Narrow floats: half a unit in the last place, saturation, and what a scale buys."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.codecs.quantizers.floating import FloatQuantizer

FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]
ALL = [*FP8, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("scaled", [True, False])
def test_codes_are_of_the_format_and_cost_is_what_they_take(dtype: torch.dtype, scaled: bool) -> None:
    quantizer = FloatQuantizer(dtype, scaled)
    stored = quantizer.encode(torch.randn(2, 3, 16, 24))
    assert stored["codes"].dtype == (torch.uint8 if dtype in FP8 else dtype)
    cost = quantizer.cost(3, 24, torch.float32)
    assert sum(tensor.nbytes for tensor in stored.values()) * 8 == 2 * 16 * (cost.payload + cost.scales)
    assert (cost.scales > 0) == scaled


@pytest.mark.parametrize("group", [1, 8, 10, 24, 99])
@pytest.mark.parametrize("scale", [torch.float16, torch.float32])
def test_every_group_of_channels_has_a_scale_of_its_own(group: int, scale: torch.dtype) -> None:
    states = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 24)
    quantizer = FloatQuantizer(torch.float8_e4m3fn, True, group, scale)
    stored = quantizer.encode(states)
    cost = quantizer.cost(3, 24, torch.float32)
    assert sum(tensor.nbytes for tensor in stored.values()) * 8 == 2 * 16 * (cost.payload + cost.scales)
    assert stored["largest"].shape[-1] == -(-24 // group) and stored["largest"].dtype == scale
    alone = FloatQuantizer(torch.float8_e4m3fn, True, None, scale)
    pieces = [alone.decode(alone.encode(piece)) for piece in states.split(group, -1)]
    assert torch.equal(quantizer.decode(stored), torch.cat(pieces, -1))


@given(st.integers(-6, 4), st.integers(0, 2**31), st.sampled_from(FP8))
@settings(deadline=None, max_examples=60)
def test_scaled_fp8_keeps_relative_precision_at_any_magnitude(power: int, seed: int, dtype: torch.dtype) -> None:
    states = torch.randn(1, 2, 8, 16, generator=torch.Generator().manual_seed(seed)) * 10.0**power
    quantizer = FloatQuantizer(dtype, scaled=True)
    error = (quantizer.decode(quantizer.encode(states)) - states).abs()
    largest = states.abs().amax(-1, keepdim=True)
    # Half a step of the significand; below the format's normal range half of its smallest step.
    bounds = torch.finfo(dtype)
    floor = largest / bounds.max * bounds.smallest_normal * bounds.eps
    fp16_floor = torch.finfo(torch.float16).tiny  # magnitudes below are kept as this
    assert (error <= (states.abs() * bounds.eps / 2).maximum(floor) * 1.01 + largest * 1e-3 + fp16_floor).all()


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("scaled", [True, False])
def test_nothing_overflows(dtype: torch.dtype, scaled: bool) -> None:
    states = torch.tensor([1e6, -1e6, 500.0, 0.0]).expand(1, 1, 8, 4)
    decoded = FloatQuantizer(dtype, scaled).decode(FloatQuantizer(dtype, scaled).encode(states))
    assert decoded.isfinite().all()
    assert (decoded[..., 3] == 0).all()


def test_zeros_stay_zeros() -> None:
    quantizer = FloatQuantizer(torch.float8_e4m3fn, scaled=True)
    assert (quantizer.decode(quantizer.encode(torch.zeros(1, 1, 8, 8))) == 0).all()


def test_a_scale_rescues_small_values() -> None:
    states = torch.randn(1, 1, 64, 32, generator=torch.Generator().manual_seed(0)) * 1e-3
    errors = [
        (quantizer.decode(quantizer.encode(states)) - states).norm() / states.norm()
        for quantizer in (FloatQuantizer(torch.float8_e4m3fn, scaled) for scaled in (True, False))
    ]
    assert errors[0] < 0.04 < 0.3 < errors[1]


def test_codes_are_copies() -> None:
    states = torch.randn(1, 1, 4, 8).to(torch.bfloat16)
    codes = FloatQuantizer(torch.bfloat16).encode(states)["codes"]
    assert codes.data_ptr() != states.data_ptr()
