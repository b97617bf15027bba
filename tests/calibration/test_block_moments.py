"""Moments of keys relative to their block, in closed form, are those of keys that were really turned."""

from __future__ import annotations

import pytest
import torch
from driving import calibrated, subject
from torch import Tensor

from kvbench.calibration.block_moments import relative_to_block
from kvbench.codecs.frame import Bands, bands_of
from kvbench.hooks.geometry import LayerGeometry

FAMILIES = ["llama", "gpt_neox", "qwen3"]


def turned(states: Tensor, place: int, layer: LayerGeometry, bands: Bands) -> Tensor:
    """``states`` (…, K) of all heads, turned by ``place`` positions outside of the fast dimensions, one by one."""
    assert layer.turn is not None
    heads = states.unflatten(-1, (layer.kv_heads, layer.head_dim))
    result = heads.clone()
    for dim, (partner, angle) in enumerate(zip(layer.turn.partners, layer.angles, strict=True)):
        if dim in bands.slow:
            turn = torch.tensor(place * angle, dtype=states.dtype)
            result[..., dim] = heads[..., dim] * turn.cos() + layer.turn.signs[dim] * heads[..., partner] * turn.sin()
    return result.flatten(-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_are_averages_over_the_places_of_a_block(family: str, fp64: None) -> None:
    layer, statistics = subject(family).geometry.layers[0], calibrated(subject(family)).layers[0]
    bands = bands_of(layer, block=16, pairs=2)
    assert bands is not None and len(bands.fast) == 4
    relative = relative_to_block(statistics, layer, bands)
    units = torch.eye(len(statistics.key_sum), dtype=torch.float64)
    places = [turned(units, place, layer, bands).T for place in range(16)]

    def check(name: str, expected: Tensor) -> None:
        torch.testing.assert_close(
            getattr(relative, name), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
        )

    for name in ("key_second", "fisher_key"):
        check(name, sum(place @ getattr(statistics, name) @ place.T for place in places) / 16)
    for name in ("key_sum", "key_value_second"):
        check(name, sum(place @ getattr(statistics, name) for place in places) / 16)
    assert torch.equal(relative.value_second, statistics.value_second)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_measured_rope_is_the_models_own(family: str, fp64: None) -> None:
    """Energy of every pair is the same before and after RoPE only if the pairs are right."""
    layer, statistics = subject(family).geometry.layers[0], calibrated(subject(family)).layers[0]
    assert layer.turn is not None
    partners = torch.tensor(layer.turn.partners)
    for moment in (statistics.key_second, statistics.rotated_key_second):
        assert moment.shape[0] == layer.kv_heads * layer.head_dim
    before, after = (
        moment.diagonal().view(layer.kv_heads, -1)[:, : len(partners)]
        for moment in (statistics.key_second, statistics.rotated_key_second)
    )
    torch.testing.assert_close(before + before[:, partners], after + after[:, partners], rtol=1e-6, atol=1e-9)
    assert all(layer.angles[dim] == layer.angles[partner] for dim, partner in enumerate(layer.turn.partners))
