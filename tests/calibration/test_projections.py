"""Measured projection weights against the modules they were measured from."""

import pytest
import torch

from kvbench.calibration.collect import collect
from kvbench.calibration.projections import measure_projections
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import probe_geometry
from kvbench.models.random_models import build


def _llama(attention):
    return attention.k_proj.weight, None, attention.v_proj.weight, attention.o_proj.weight


def _gpt_neox(attention):
    weight = attention.query_key_value.weight.unflatten(0, (4, 3, 16))
    bias = attention.query_key_value.bias.unflatten(0, (4, 3, 16))
    return weight[:, 1].flatten(0, 1), bias[:, 1].flatten(), weight[:, 2].flatten(0, 1), attention.dense.weight


def _gpt2(attention):
    _, key, value = attention.c_attn.weight.T.chunk(3)
    return key, attention.c_attn.bias.chunk(3)[1], value, attention.c_proj.weight.T


@pytest.mark.parametrize(
    ("family", "module", "weights"),
    [
        ("llama", "model.layers.1.self_attn", _llama),
        ("gpt_neox", "gpt_neox.layers.1.attention", _gpt_neox),
        ("gpt2", "transformer.h.1.attn", _gpt2),
    ],
)
def test_measured_weights_are_the_modules_own(family, module, weights):
    model = build(family, torch.float64)
    geometry = probe_geometry(model)
    measured = measure_projections(model, geometry)[1]
    key, bias, value, output = weights(model.get_submodule(module))
    torch.testing.assert_close(measured["key_weight"], key.detach())
    torch.testing.assert_close(measured["value_weight"], value.detach())
    torch.testing.assert_close(measured["key_bias"], torch.zeros(len(key)).double() if bias is None else bias.detach())
    layer = geometry.layers[1]
    blocks = output.detach().unflatten(1, (layer.kv_heads, layer.group_size, layer.value_dim))
    gram = sum(blocks[:, 1, query].T @ blocks[:, 1, query] for query in range(layer.group_size))
    torch.testing.assert_close(measured["output_gram"][1], gram)


@pytest.mark.parametrize("family", ["deepseek_v2", "minicpm3"])
def test_latent_attention(family):
    """RoPE keys come from the last rows of one projection, outputs from latents through two."""
    model = build(family, torch.float64)
    geometry = probe_geometry(model)
    measured, module = measure_projections(model, geometry)[1], model.model.layers[1].self_attn
    assert (geometry.layers[1].head_dim, geometry.layers[1].value_dim) == (8, 24) and "value_weight" not in measured
    neighbours = module.kv_a_proj_with_mqa.weight[24:].detach()
    torch.testing.assert_close(measured["key_weight"], neighbours)
    output = module.o_proj.weight.unflatten(1, (4, 12))
    values = module.kv_b_proj.weight.unflatten(0, (4, 28))[:, 16:]
    through = torch.einsum("ohv,hvr->ohr", output, values).detach()
    torch.testing.assert_close(measured["output_gram"], torch.einsum("ohr,ohs->rs", through, through)[None])


def test_moments_of_latents_are_those_of_what_is_cached():
    model, ids = build("deepseek_v3", torch.float64), torch.randint(3, 200, (1, 24))
    geometry = probe_geometry(model)
    layer = collect(model, geometry, ids, fisher=True).layers[1]
    cache = model(ids, use_cache=True).past_key_values.layers[1]
    latents, rope_keys = cache.keys[0, 0, 4:].detach(), cache.values[0, 0, 4:].detach()
    torch.testing.assert_close(layer.value_second, latents.T @ latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.rotated_key_second, rope_keys.T @ rope_keys, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.key_second.trace(), layer.rotated_key_second.trace() / _stretched(model) ** 2)
    assert layer.query_second.shape == (1, 8, 8) and layer.query_sum.shape == (4, 8)
    assert layer.head_query_second.shape == (4, 8, 8)
    assert layer.fisher_value.shape == (24, 24) and layer.fisher_rotated_key.diagonal().min() > 0


def _stretched(model):
    """What YaRN multiplies keys by while they are rotated."""
    return model.model.rotary_emb.attention_scaling


def test_keys_behind_a_norm_have_no_weight():
    model = build("qwen3", torch.float64)
    geometry = probe_geometry(model)
    layer = collect(model, geometry, torch.randint(3, 200, (1, 24)), fisher=False).layers[0]
    assert layer.value_weight.shape == (64, 64)
    with pytest.raises(KvbenchError, match="no key_weight"):
        layer.measured("key_weight")


def test_measuring_leaves_no_trace():
    model = build("llama")
    ids = torch.arange(3, 23)[None]
    before = model(ids).logits
    measure_projections(model, probe_geometry(model))
    assert torch.equal(model(ids).logits, before)


def test_input_magnitudes_are_those_of_the_layer():
    model = build("llama", torch.float64)
    seen = []
    hook = model.model.layers[2].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    ids = torch.randint(3, 200, (1, 24))
    model(ids)
    hook.remove()
    layer = collect(model, probe_geometry(model), ids, fisher=False).layers[2]
    torch.testing.assert_close(layer.input_abs_sum, seen[0][0, 4:].detach().abs().sum(0))
