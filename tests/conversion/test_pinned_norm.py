"""An RMSNorm whose divisor a constant channel pins: DeepSeek's own module, and what comes out of it."""

import math

import pytest
import torch
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

from kvbench.conversion.pinned_norm import PinnedNorm, longest_output

RANK, WIDTH = 40, 24


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_latents_come_through_as_they_are(dtype: torch.dtype, size: float):
    inputs, longest = drawn(WIDTH, 500), 8 * size * RANK**0.5
    weight, bias = size * drawn(RANK, WIDTH) / WIDTH**0.5, size * drawn(RANK)
    pinned = PinnedNorm.of(weight, bias, longest, dtype)
    norm = DeepseekV3RMSNorm(RANK + 1)
    norm.weight = torch.nn.Parameter(pinned.norm.to(dtype), requires_grad=False)
    assert torch.equal(norm.weight.double(), pinned.norm)  # no dtype rounds it, nor the constant
    assert float(pinned.bias[-1].to(dtype)) == float(pinned.bias[-1])
    latents = norm((pinned.weight @ inputs + pinned.bias[:, None]).to(dtype).T)
    assert bool((latents[:, -1] == 0).all()) and bool(latents.isfinite().all())
    expected = (weight @ inputs + bias[:, None]).T
    error = pinned.scale * latents[:, :-1].double() - expected
    assert float(error.norm() / expected.norm()) < torch.finfo(dtype).eps


def test_what_follows_undoes_the_scale():
    weight, bias, after = drawn(RANK, WIDTH), drawn(RANK), drawn(7, RANK)
    pinned = PinnedNorm.of(weight, bias, 100.0, torch.float32)
    latents = torch.cat([drawn(3, RANK) / pinned.scale, drawn(3, 1)], 1)
    torch.testing.assert_close(latents @ pinned.followed_by(after).T, drawn(3, RANK) @ after.T)
    assert 0.7 < pinned.scale < 1.42  # latents are cached in about the size they have


def test_nothing_at_all_is_no_problem():
    pinned = PinnedNorm.of(torch.zeros(3, 2), torch.zeros(3), 0.0, torch.float32)
    assert math.isfinite(pinned.scale) and float(pinned.bias[-1]) == 1


def test_no_output_is_longer_than_the_bound():
    weight, bias, norm = drawn(RANK, WIDTH), drawn(RANK), drawn(WIDTH)
    inputs = drawn(WIDTH, 2000)
    normed = norm[:, None] * inputs / inputs.square().mean(0).sqrt()
    longest = float((weight @ normed + bias[:, None]).norm(dim=0).max())
    assert longest <= longest_output(weight, bias, norm) < 8 * longest
