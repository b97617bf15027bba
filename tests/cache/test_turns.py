"""How a family's RoPE turns keys is measured by calling it."""

from __future__ import annotations

import pytest
import torch
from driving import ALL_FAMILIES, subject
from torch import Tensor

from kvbench.hooks.turns import Turn, measured_turn


def interleaved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def turned(x: Tensor) -> Tensor:
        swapped = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return x * cos.unsqueeze(1) + swapped * sin.unsqueeze(1)

    return turned(q), turned(k)


def permuting(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return interleaved(q.flip(-1), k.flip(-1), cos, sin)


def test_pairs_side_by_side() -> None:
    assert measured_turn(interleaved, 4) == Turn((1, 0, 3, 2), (-1.0, 1.0, -1.0, 1.0))


def test_what_is_of_another_form_is_left_to_the_family() -> None:
    assert measured_turn(permuting, 4) is None


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family_is_measured(family: str) -> None:
    for layer in subject(family).geometry.layers:
        if layer.turn is None:
            continue
        partners = layer.turn.partners
        assert len(partners) == layer.rotary_dims and sorted(partners) == list(range(layer.rotary_dims))
        assert {abs(sign) for sign in layer.turn.signs} == {1.0}


def test_llama_splits_heads_in_halves() -> None:
    layer = subject("llama").geometry.layers[0]
    half = layer.rotary_dims // 2
    assert layer.turn is not None
    assert layer.turn.partners == tuple((i + half) % layer.rotary_dims for i in range(layer.rotary_dims))
    assert layer.turn.signs == (-1.0,) * half + (1.0,) * half
