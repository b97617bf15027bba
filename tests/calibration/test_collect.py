"""Statistics are the moments of what a stock run puts into its cache, and Fisher predicts the KL of small errors."""

from __future__ import annotations

import copy
from dataclasses import fields

import pytest
import torch
from driving import Subject, calibrated, subject, token_ids
from torch import Tensor
from transformers import DynamicCache

from kvbench.calibration.collect import collect
from kvbench.calibration.moments import SINKS
from kvbench.calibration.statistics import LayerStatistics, Statistics
from kvbench.errors import KvbenchError
from kvbench.hooks.interception import AttentionCall, Interception, Takeover

FAMILIES = ("llama", "gemma3", "gpt_neox", "phi", "gpt2", "gemma2")


@pytest.fixture(autouse=True)
def in_fp64(fp64: None) -> None:
    """Collecting turns gradients on by itself."""


def stock_states(one: Subject, windows: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """(tokens without sinks, K) keys after RoPE and values of every full layer, from stock caches."""
    rows: dict[int, list[tuple[Tensor, Tensor]]] = {layer.layer: [] for layer in one.geometry.compressible}
    for ids in windows:
        cache = DynamicCache(config=one.model.config)
        one.model(ids[None], past_key_values=cache, use_cache=True)
        for layer, layer_rows in rows.items():
            states = cache.layers[layer].keys, cache.layers[layer].values
            layer_rows.append(tuple(part[0, :, SINKS:].transpose(0, 1).flatten(1) for part in states))
    return {
        layer: tuple(torch.cat(parts) for parts in zip(*layer_rows, strict=True)) for layer, layer_rows in rows.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_are_those_of_the_stock_cache(family: str) -> None:
    one, windows = subject(family), token_ids(3, 30)
    statistics = collect(one.model, one.geometry, windows)
    for index, (keys, values) in stock_states(one, windows).items():
        layer = statistics.layers[index]
        assert layer.count == len(keys) == 3 * (30 - SINKS)
        for side, states in (("rotated_key", keys), ("value", values)):
            assert torch.allclose(layer.mean(side), states.mean(0), rtol=1e-9, atol=1e-12)
            assert torch.allclose(layer.second(side), states.T @ states / len(states), rtol=1e-9, atol=1e-12)
            assert torch.allclose(layer.covariance(side), states.T.cov(correction=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "phi", "gpt2"])
def test_keys_before_rope_have_the_same_energy(family: str) -> None:
    """A rotation moves energy between dimensions and keeps its sum; without RoPE nothing moves."""
    one = subject(family)
    for layer in calibrated(one).layers.values():
        assert layer.key_second.trace() == pytest.approx(float(layer.rotated_key_second.trace()), rel=1e-6)
        assert torch.equal(layer.key_second, layer.rotated_key_second) == (family == "gpt2")


def test_queries_are_summed_over_the_heads_of_a_group_and_for_every_head() -> None:
    one, windows = subject("llama"), token_ids(2, 20)
    statistics, seen = collect(one.model, one.geometry, windows), []
    handle = one.model.model.layers[1].self_attn.q_proj.register_forward_hook(lambda m, i, out: seen.append(out[0]))
    try:
        for ids in windows:
            one.model(ids[None], use_cache=False)
    finally:
        handle.remove()
    query = torch.cat([part[SINKS:] for part in seen]).unflatten(1, (2, 2, 16))  # (tokens, kv heads, group, d)
    expected = torch.einsum("tngd,tnge->nde", query, query)
    assert torch.allclose(statistics.layers[1].query_second, expected, rtol=1e-9, atol=1e-12)
    heads, layer = query.flatten(1, 2), statistics.layers[1]
    assert torch.allclose(layer.query_sum, heads.sum(0), rtol=1e-9, atol=1e-12)
    assert torch.allclose(layer.head_query_second, torch.einsum("thd,the->hde", heads, heads), rtol=1e-9, atol=1e-12)


def test_collecting_leaves_the_model_alone() -> None:
    one, ids = subject("gemma2"), token_ids(1, 20)
    model = copy.deepcopy(one.model)
    wanted = [
        parameter.requires_grad_(index % 2 == 0).requires_grad for index, parameter in enumerate(model.parameters())
    ]
    before = model(ids).logits
    progress: list[tuple[int, int]] = []
    collect(model, one.geometry, token_ids(3, 20), progress=lambda *done: progress.append(done))
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(model(ids).logits, before)
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_fisher_there_is_none() -> None:
    one = subject("llama")
    statistics = collect(one.model, one.geometry, token_ids(2, 20), fisher=False)
    assert not any(layer.has_fisher for layer in statistics.layers.values())
    assert all(layer.has_fisher for layer in calibrated(one).layers.values())


def test_the_same_seed_gives_the_same_labels() -> None:
    one, windows = subject("llama"), token_ids(2, 20)
    first, again, other = (collect(one.model, one.geometry, windows, seed=seed).layers[0] for seed in (1, 1, 2))
    assert torch.equal(first.fisher_value, again.fisher_value)
    assert not torch.equal(first.fisher_value, other.fisher_value)


class _Nudge:
    """Adds a vector to one token's values, or keys after RoPE, in one layer."""

    def __init__(self, layer: int, side: str, slot: int, vector: Tensor) -> None:
        self.layer, self.side, self.slot, self.vector = layer, side, slot, vector

    def prepare(self, layer: int, *_: object) -> Takeover | None:
        return Takeover(self) if layer == self.layer else None

    def attend(self, call: AttentionCall) -> Tensor:
        states = {"rotated_key": call.keys.clone(), "value": call.values.clone()}
        states[self.side][0, :, self.slot] += self.vector.view(call.keys.shape[1], -1)
        return torch.nn.functional.scaled_dot_product_attention(
            call.query, states["rotated_key"], states["value"], scale=call.scaling, is_causal=True, enable_gqa=True
        )


def test_fisher_predicts_the_kl_of_a_small_error() -> None:
    """KL(p ‖ p̂) ≈ ½ εᵀFε, summed over the tokens that carry the error; labels are sampled, hence the tolerance."""
    one = subject("llama", layers=1)
    ids, length, size, count = token_ids(1, 12), 12, 1e-3, 250
    statistics = collect(one.model, one.geometry, ids.expand(count, -1)).layers[0]
    base = one.model(ids, use_cache=False).logits[0].log_softmax(-1)
    for side in ("value", "rotated_key"):
        values, vectors = torch.linalg.eigh(getattr(statistics, f"fisher_{side}") / count)
        direction, kl = vectors[:, -1] * size, 0.0
        for slot in range(SINKS, length):
            with Interception(one.model, _Nudge(0, side, slot, direction)):
                nudged = one.model(ids, use_cache=False).logits[0].log_softmax(-1)
            kl += float((base.exp() * (base - nudged)).sum())
        assert kl == pytest.approx(float(values[-1]) * size**2 / 2, rel=0.25)


def test_large_means_do_not_drown_the_covariance_in_rounding() -> None:
    """Qwen2's biases of keys and queries are hundreds of times their spread; models run in fp32."""
    precise, rough = (copy.deepcopy(subject("qwen2", dtype).model) for dtype in (torch.float64, torch.float32))
    for model in (precise, rough):
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias.copy_(torch.linspace(-400, 400, 32))
            layer.self_attn.q_proj.bias.copy_(torch.linspace(-400, 400, 64))
    windows, geometry = token_ids(2, 60), subject("qwen2").geometry
    expected, measured = (collect(model, geometry, windows, fisher=False).layers[0] for model in (precise, rough))
    for moment in (lambda layer: layer.covariance("key"), query_covariance):
        assert (moment(measured) - moment(expected)).norm() < 1e-3 * moment(expected).norm()


def query_covariance(layer: LayerStatistics) -> Tensor:
    mean = layer.query_sum / layer.count
    return layer.head_query_second / layer.count - torch.einsum("hd,he->hde", mean, mean)


def test_tensors_round_trip() -> None:
    statistics = calibrated(subject("gemma3", layers=4))
    named = {name: tensor.clone() for name, tensor in statistics.tensors().items()}
    again = Statistics.from_tensors(named, "a model", "weights", "text")
    assert list(again.layers) == list(statistics.layers) == [1, 3]
    assert (again.model, again.weights_sha256, again.text_sha256) == ("a model", "weights", "text")
    for index, layer in statistics.layers.items():
        for item in fields(LayerStatistics):
            assert torch.equal(getattr(again.layers[index], item.name), getattr(layer, item.name))


def test_the_first_tokens_count_where_nothing_keeps_them() -> None:
    one, ids = subject("llama"), token_ids(2, SINKS + 6, seed=3)
    every = collect(one.model, one.geometry, ids, fisher=True, sinks=0).layers[0]
    assert every.count == ids.numel()
    with torch.no_grad():
        cache = one.model(ids, past_key_values=one.stock_cache(), use_cache=True).past_key_values
    values = cache.layers[0].values.transpose(1, 2).flatten(2).flatten(0, 1)
    torch.testing.assert_close(every.value_second, values.T @ values, rtol=1e-6, atol=1e-9)
    later = collect(one.model, one.geometry, ids, fisher=False).layers[0]
    assert later.count == ids.numel() - 2 * SINKS and every.has_fisher


def test_windows_of_nothing_but_sinks_are_refused() -> None:
    one = subject("llama")
    with pytest.raises(KvbenchError, match="longer than 4 tokens"):
        collect(one.model, one.geometry, token_ids(2, 4))
