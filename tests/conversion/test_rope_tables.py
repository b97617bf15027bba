"""Frequencies that no base gives, through transformers' own LongRoPE."""

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding

from kvbench.conversion.rope_table import rope_parameters


def table(frequencies: torch.Tensor, attention_factor: float = 1.0) -> DeepseekV3RotaryEmbedding:
    parameters = rope_parameters(frequencies, attention_factor, 128)
    config = DeepseekV3Config(
        qk_rope_head_dim=2 * len(frequencies), rope_parameters=parameters, max_position_embeddings=128
    )
    return DeepseekV3RotaryEmbedding(config)


@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
@pytest.mark.parametrize("dims", [64, 80, 128])
def test_frequencies_of_a_plain_rope_come_back_bit_for_bit(theta: float, dims: int):
    every = 1.0 / theta ** (torch.arange(0, dims, 2, dtype=torch.float) / dims)
    picked = every[[0, 0, 3, 7, 7, 7, dims // 2 - 1]]
    assert torch.equal(table(picked).inv_freq, picked)
    assert torch.equal(table(every).inv_freq, every)


def test_other_frequencies_come_back_within_one_unit_in_the_last_place():
    drawn = torch.rand(500, generator=torch.Generator().manual_seed(0)).clamp_min(1e-6)
    torch.testing.assert_close(table(drawn).inv_freq, drawn, rtol=1.2e-7, atol=0)


def test_the_table_is_the_same_at_every_length():
    rotary = table(torch.tensor([1.0, 0.25, 0.25]), attention_factor=1.25)
    short = rotary(torch.zeros(1), torch.arange(10)[None])
    long = rotary(torch.zeros(1), torch.arange(1000)[None])
    for some, more in zip(short, long, strict=True):
        assert torch.equal(some, more[:, :10])
    assert float(short[0][0, 0, 0]) == 1.25
