"""Group-wise integers: |x − x̂| ≤ scale / 2, plus what rounding the zero to fp16 costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvbench.codecs.quantizers.integer import IntegerQuantizer

LIMIT = torch.finfo(torch.float16).max


@st.composite
def latents(draw: st.DrawFn, multiple: int = 8) -> Tensor:
    """(batch, heads, tokens, rank) with outliers, constant stretches, tiny and huge magnitudes."""
    batch, heads, groups, rank = (draw(st.integers(1, most)) for most in (2, 2, 3, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (batch, heads, groups * multiple, rank)
    states = torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-9, 4))
    states = states + draw(st.sampled_from([0.0, 0.1, -300.0, 6e4]))
    if draw(st.booleans()):
        states[:, :, : multiple // 2 + 1] = draw(st.floats(-1e4, 1e4, width=32))
    if draw(st.booleans()):
        states[..., draw(st.integers(0, rank - 1))] *= 100
    return states.clamp(-LIMIT, LIMIT)


def spread(per_group: Tensor, quantizer: IntegerQuantizer, like: Tensor) -> Tensor:
    """A value per group, at every value of the group."""
    axis = -2 if quantizer.axis == "token" else -1
    size = quantizer.group if quantizer.axis == "token" else min(quantizer.group, like.shape[-1])
    return per_group.double().repeat_interleave(size, axis)[..., : like.shape[-2], : like.shape[-1]]


def assert_bound(states: Tensor, quantizer: IntegerQuantizer) -> None:
    stored = quantizer.encode(states)
    decoded = quantizer.decode(stored)
    assert decoded.shape == states.shape and decoded.dtype == torch.float32
    assert decoded.isfinite().all()
    scale, zero = (spread(stored[name], quantizer, states) for name in ("scale", "zero"))
    error = (decoded.double() - states.double()).abs()
    zero_rounding = (states.double() - zero).clamp(max=0).abs()  # below the rounded zero nothing can be represented
    arithmetic = 1e-6 * (states.double().abs() + zero.abs())
    assert (error <= scale / 2 * (1 + 1e-5) + zero_rounding + arithmetic).all()


@given(latents(), st.sampled_from([2, 3, 4, 8]), st.integers(1, 24))
@settings(deadline=None, max_examples=150)
def test_bound_along_channels(states: Tensor, bits: int, group: int) -> None:
    """The last group of a row may be ragged, and a group wider than the row is the row."""
    assert_bound(states, IntegerQuantizer(bits, group, "channel"))


@given(latents(multiple=24), st.sampled_from([2, 3, 4, 8]), st.sampled_from([1, 3, 8, 12, 24]))
@settings(deadline=None, max_examples=100)
def test_bound_along_tokens(states: Tensor, bits: int, group: int) -> None:
    assert_bound(states, IntegerQuantizer(bits, group, "token"))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-8, LIMIT, -LIMIT])
@pytest.mark.parametrize("axis", ["channel", "token"])
def test_a_constant_group_comes_back(value: float, axis: str) -> None:
    states = torch.full((1, 1, 8, 8), value)
    quantizer = IntegerQuantizer(2, 8, axis)
    assert torch.equal(quantizer.decode(quantizer.encode(states)), states.half().float())


@pytest.mark.parametrize("axis", ["channel", "token"])
def test_values_beyond_fp16_are_clipped_and_stay_finite(axis: str) -> None:
    states = torch.tensor([1e30, -1e30, 5.0, 0.0]).repeat(2).expand(1, 1, 8, 8).clone()
    quantizer = IntegerQuantizer(4, 8, axis)
    assert quantizer.decode(quantizer.encode(states)).isfinite().all()


@pytest.mark.parametrize("axis", ["channel", "token"])
def test_error_halves_with_every_bit(axis: str) -> None:
    states = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    errors = []
    for bits in (2, 3, 4, 8):
        quantizer = IntegerQuantizer(bits, 32, axis)
        errors.append(float((quantizer.decode(quantizer.encode(states)) - states).square().mean().sqrt()))
    assert errors == sorted(errors, reverse=True)
    assert errors[1] / errors[2] == pytest.approx((2**4 - 1) / (2**3 - 1), rel=0.05)


@pytest.mark.parametrize(("bits", "group", "axis"), [(4, 64, "channel"), (3, 7, "channel"), (2, 24, "token")])
def test_stored_tensors_are_what_the_cost_says(bits: int, group: int, axis: str) -> None:
    quantizer = IntegerQuantizer(bits, group, axis)
    states = torch.randn(2, 3, 48, 50)
    stored, cost = quantizer.encode(states), quantizer.cost(3, 50, torch.bfloat16)
    assert stored["codes"].nbytes * 8 == 2 * 48 * cost.payload == states.numel() * bits
    assert (stored["scale"].nbytes + stored["zero"].nbytes) * 8 == pytest.approx(2 * 48 * cost.scales)
    assert 48 % quantizer.block == 0 and quantizer.tensors() == []


def test_outlier_channels_are_why_keys_are_grouped_along_tokens() -> None:
    """KIVI, section 3: a few channels are far larger, so that a group across channels wastes its range on them."""
    states = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    states[..., 5] = states[..., 5] + 40
    errors = {}
    for axis in ("token", "channel"):
        quantizer = IntegerQuantizer(2, 32, axis)
        errors[axis] = float((quantizer.decode(quantizer.encode(states)) - states).square().mean())
    assert errors["token"] < errors["channel"] / 10
