"""Attaching: who is taken over, who is refused, and that nothing is left behind."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from driving import ALL_FAMILIES, FRAMES, SMALL_SPANS, attach, feed, subject, token_ids, worst
from transformers import AutoModelForCausalLM, PreTrainedModel

from kvbench.cache.attach import CompressedModel, Plan
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.layer import ExactLayer
from kvbench.cache.self_test import identity_plan, self_test
from kvbench.codecs.frame import Frame
from kvbench.errors import KvbenchError, UnsupportedModelError
from kvbench.hooks.geometry import probe_geometry
from kvbench.hooks.interception import Interception
from kvbench.models.random_models import build, cast

pytestmark = pytest.mark.usefixtures("fp64")
EXACT = 1e-10
families = pytest.mark.parametrize("family", ALL_FAMILIES)


def traces(model: PreTrainedModel) -> tuple:
    """All that kvbench could have left on a model."""
    hooks = [
        (name, len(module._forward_pre_hooks), len(module._forward_pre_hooks_with_kwargs), len(module._forward_hooks))
        for name, module in model.named_modules()
    ]
    forwards = [name for name, module in model.named_modules() if "forward" in vars(module)]
    return model.config._attn_implementation, model.config.to_dict(), hooks, forwards


@families
def test_detaching_restores_the_model_bit_for_bit(family: str) -> None:
    one, ids = subject(family, torch.float32), token_ids(2, 20)
    before, logits = traces(one.model), one.model(ids).logits
    weights = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    with one.attach(one.identity("before")) as compressed:
        assert traces(one.model) != before
        feed(one.model, compressed.new_cache(), ids, [12, 8])
    assert traces(one.model) == before
    assert torch.equal(one.model(ids).logits, logits)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in one.model.state_dict().items())


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_implementation_comes_back(implementation: str) -> None:
    one = subject("llama")
    previous = one.model.config._attn_implementation
    one.model.set_attn_implementation(implementation)
    try:
        with one.attach(one.identity()):
            assert one.model.config._attn_implementation == "kvbench"
        assert one.model.config._attn_implementation == implementation
    finally:
        one.model.set_attn_implementation(previous)


def test_an_error_inside_still_detaches() -> None:
    one = subject("llama")
    before = traces(one.model)
    with pytest.raises(ZeroDivisionError), one.attach(one.identity()):
        raise ZeroDivisionError
    assert traces(one.model) == before


@families
def test_stock_attention_meanwhile(family: str) -> None:
    """Stock caches and passes without a cache are as without kvbench, softcaps included."""
    one, ids = subject(family), token_ids(2, 20)
    model, padding = copy.deepcopy(one.model), torch.ones_like(ids)
    padding[0, :3] = 0
    for name, parameter in model.named_parameters():
        if "q_proj" in name:
            parameter *= 20  # scores large enough for gemma2's softcap to matter
    plain = model(ids, use_cache=False).logits
    padded = model(ids, attention_mask=padding, use_cache=False).logits
    stock = feed(model, one.stock_cache(), ids, [12, 6, 1, 1])
    with CompressedModel(model, one.identity("before"), one.geometry):
        assert worst(model(ids, use_cache=False).logits, plain) < EXACT
        assert worst(model(ids, attention_mask=padding, use_cache=False).logits, padded, padding) < EXACT
        assert worst(feed(model, one.stock_cache(), ids, [12, 6, 1, 1]), stock) < EXACT


def test_two_attachments_one_after_another() -> None:
    one, ids = subject("llama"), token_ids(2, 30)
    stock = one.model(ids).logits
    for frame in FRAMES:
        with one.attach(one.identity(frame)) as compressed:
            outputs = [feed(one.model, compressed.new_cache(), ids, [20, 10]) for _ in range(2)]
        assert all(worst(logits, stock) < EXACT for logits in outputs)


def test_two_attachments_at_once_drive_their_own_caches() -> None:
    one, ids = subject("llama"), token_ids(2, 30)
    stock = one.model(ids).logits
    with one.attach(one.identity("after")) as outer, one.attach(one.identity("before")) as inner:
        for compressed in (outer, inner, outer):
            assert worst(feed(one.model, compressed.new_cache(), ids, [20, 10]), stock) < EXACT


def test_caches_of_one_attachment_are_independent() -> None:
    one, ids, others = subject("llama"), token_ids(2, 30), token_ids(1, 40, seed=5)
    stock, stock_others = one.model(ids).logits, one.model(others).logits
    with one.attach(one.identity("before")) as compressed:
        first, second = compressed.new_cache(), compressed.new_cache()
        logits = [feed(one.model, first, ids, [20])]
        logits_others = [feed(one.model, second, others, [25])]
        logits.append(feed(one.model, first, ids, [4, 6], start=20))
        logits_others.append(feed(one.model, second, others, [15], start=25))
    assert worst(torch.cat(logits, 1), stock) < EXACT
    assert worst(torch.cat(logits_others, 1), stock_others) < EXACT


@pytest.mark.parametrize("filled", [0, 20])
def test_a_cache_without_its_attachment_is_refused(filled: int) -> None:
    """Stock attention would see the new tokens alone, and nothing would look wrong."""
    one, ids = subject("llama"), token_ids(1, 30)
    with one.attach(one.identity()) as compressed:
        cache = compressed.new_cache()
        if filled:
            feed(one.model, cache, ids, [filled])
    with pytest.raises(KvbenchError, match="attached model that is closed, or for another one"):
        feed(one.model, cache, ids, [1], start=filled)
    with one.attach(one.identity()), pytest.raises(KvbenchError, match="or for another one"):
        feed(one.model, cache, ids, [1], start=filled)


def test_a_model_outside_its_attachment_can_attach_again_and_go_on() -> None:
    one, ids = subject("llama"), token_ids(1, 30)
    stock = one.model(ids).logits
    compressed = CompressedModel(one.model, one.identity("before"), one.geometry)
    with compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [20])
    with compressed:
        assert worst(feed(one.model, cache, ids, [10], start=20), stock[:, 20:]) < EXACT


TINY = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
REFUSED = {
    "gptj": (
        transformers.GPTJConfig(vocab_size=99, n_embd=32, n_layer=2, n_head=4, rotary_dim=4),
        "no attention interf",
    ),
    "bloom": (transformers.BloomConfig(vocab_size=99, hidden_size=32, n_layer=2, n_head=4), "no attention interface"),
    "doge": (transformers.DogeConfig(**TINY, intermediate_size=48, num_key_value_heads=2), "adds a bias to scores"),
    "diffllama": (transformers.DiffLlamaConfig(**TINY, intermediate_size=48), "attends several times"),
    "falcon_mamba": (transformers.FalconMambaConfig(vocab_size=99, hidden_size=32), "no attention layers"),
    "minimax": (
        transformers.MiniMaxConfig(
            **TINY, intermediate_size=48, num_key_value_heads=2, head_dim=8, num_local_experts=2
        ),
        "its code does not take kvbench's cache: ValueError",
    ),
}


def random_model(config: transformers.PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return model.requires_grad_(False)


@pytest.mark.parametrize("name", REFUSED)
def test_families_that_cannot_be_hooked_are_refused_and_left_alone(name: str) -> None:
    model, ids = random_model(REFUSED[name][0]), token_ids(1, 12) % 99
    before, logits = traces(model), model(ids, use_cache=False).logits
    with pytest.raises(UnsupportedModelError, match=REFUSED[name][1]):
        geometry = probe_geometry(model)
        with attach(model, identity_plan(geometry, "before"), geometry):
            pytest.fail("attached")
    assert traces(model) == before
    assert torch.equal(model(ids, use_cache=False).logits, logits)


@pytest.mark.parametrize("frame", FRAMES)
def test_a_norm_after_rope_allows_every_frame(frame: Frame) -> None:
    """Keys come as they are attended, whatever has happened to them since they were rotated."""
    config = transformers.HunYuanDenseV1Config(**TINY, intermediate_size=48, num_key_value_heads=2, head_dim=8)
    model = random_model(config)
    self_test(model, probe_geometry(model), frame)


def test_rope_that_depends_on_the_length_forbids_keys_before_rope() -> None:
    config = transformers.LlamaConfig(
        **TINY, intermediate_size=48, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    geometry = probe_geometry(model)
    assert geometry.dynamic_rope
    with pytest.raises(UnsupportedModelError, match="keys after RoPE"):
        CompressedModel(model, identity_plan(geometry, "before"), geometry)
    with attach(model, identity_plan(geometry, "after"), geometry) as compressed:
        assert compressed.rope_table_bytes == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_wrong_in_fp32_is_refused_in_16_bit_too(dtype: torch.dtype, monkeypatch) -> None:
    """Its rounding is no excuse: the bound of 16 bit lets a mistake of a tenth pass, a copy in fp32 does not."""
    model = build("gpt_oss")
    for module in model.modules():  # sinks so small that they take a hundredth of the attention
        if hasattr(module, "sinks"):
            module.sinks.data.fill_(-2)
    model = cast(model, dtype)
    geometry = probe_geometry(model)
    self_test(model, geometry, "after")
    for module in ("layer", "compressed"):
        monkeypatch.setattr(f"kvbench.cache.{module}.beside_sinks", lambda part, sinks: part.output)
    with pytest.raises(UnsupportedModelError, match="identity codecs"):
        self_test(model, geometry, "after")


@pytest.mark.parametrize("family", ["llama", "gemma3", "mixtral", "deepseek_v2"])
@pytest.mark.parametrize("frame", ["after", "before"])
def test_a_16_bit_model_is_tested_by_its_first_layers(family: str, frame: Frame) -> None:
    one = subject(family, torch.bfloat16, layers=8 if family == "gemma3" else 4)
    layers, before = len(one.model.model.layers), traces(one.model)
    self_test(one.model, one.geometry, frame)
    assert len(one.model.model.layers) == layers and traces(one.model) == before
    assert one.model.dtype == torch.bfloat16


def test_a_model_in_training_mode_is_told_so() -> None:
    """Its dropout would look like an unsupported architecture."""
    one = subject("gpt2")
    model = copy.deepcopy(one.model).train()
    with pytest.raises(KvbenchError, match=r"GPT2LMHeadModel is in training mode.*call model\.eval"):
        self_test(model, one.geometry, "after")


def test_rotations_of_unknown_positions_are_refused() -> None:
    """A family may keep position_ids from its attention; padded rows would then share one wrong table."""
    one = subject("llama")
    compressed = CompressedModel(one.model, one.identity("before"), one.geometry)
    rotation = (torch.ones(2, 5, 16), torch.zeros(2, 5, 16))
    with pytest.raises(UnsupportedModelError, match="positions of a padded batch"):
        compressed.record(0, compressed.new_cache(), 0, rotation, None)
    cache = compressed.new_cache()
    compressed.record(0, cache, 0, (rotation[0][:1], rotation[1][:1]), None)
    assert cache.positions.index.tolist() == [[0, 1, 2, 3, 4]]


def test_a_module_that_is_no_decoder_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no attention layers"), Interception(torch.nn.Linear(2, 2), None):
        pass


def test_layers_without_a_plan_and_sliding_layers_are_exact() -> None:
    one = subject("gemma3", layers=4)
    assert [layer.sliding_window for layer in one.geometry.layers] == [8, None, 8, None]
    full = one.identity()
    only_last = Plan({3: full.layers[3]}, SMALL_SPANS)
    with one.attach_untested(only_last) as compressed:
        kinds = [type(layer) for layer in compressed.new_cache().layers]
    assert kinds == [ExactLayer, ExactLayer, ExactLayer, CompressedLayer]


def test_some_layers_before_and_some_after_rope() -> None:
    one, ids = subject("llama"), token_ids(2, 30)
    stock = one.model(ids).logits
    before, after = one.identity("before"), one.identity("after")
    mixed = Plan({0: after.layers[0], 1: before.layers[1]}, SMALL_SPANS)
    with one.attach(mixed) as compressed:
        assert worst(feed(one.model, compressed.new_cache(), ids, [20, 1, 9]), stock) < EXACT


def test_geometry_is_measured() -> None:
    """Numbers from the families' configs, by hand."""
    measured = {
        family: [
            (layer.heads, layer.kv_heads, layer.head_dim, layer.value_dim, layer.rotary_dims, layer.sliding_window)
            for layer in subject(family).geometry.layers
        ]
        for family in ("llama", "qwen3", "phi", "gpt_neox", "gpt2", "mistral", "gemma3", "qwen2_swa")
    }
    assert measured == {
        "llama": [(4, 2, 16, 16, 16, None)] * 2,
        "qwen3": [(4, 2, 32, 32, 32, None)] * 2,
        "phi": [(4, 2, 16, 16, 8, None)] * 2,
        "gpt_neox": [(4, 4, 16, 16, 4, None)] * 2,
        "gpt2": [(4, 4, 16, 16, 0, None)] * 2,
        "mistral": [(4, 2, 16, 16, 16, 8)] * 2,
        "gemma3": [(4, 2, 32, 32, 32, 8), (4, 2, 32, 32, 32, None)],
        "qwen2_swa": [(4, 2, 16, 16, 16, None), (4, 2, 16, 16, 16, 8)],
    }
    assert [layer.rope_group for layer in subject("gemma3", layers=4).geometry.layers] == [0, 1, 0, 1]


def test_the_probe_leaves_the_model_alone() -> None:
    one, ids = subject("gemma3"), token_ids(1, 9)
    before, logits = traces(one.model), one.model(ids).logits
    assert probe_geometry(one.model) == one.geometry
    assert traces(one.model) == before
    assert torch.equal(one.model(ids).logits, logits)


def test_a_copy_of_the_model_can_be_attached_too() -> None:
    one, ids = subject("llama"), token_ids(1, 20)
    twin = copy.deepcopy(one.model)
    with one.attach(one.identity("before")), attach(twin, one.identity("before")) as compressed:
        assert worst(feed(twin, compressed.new_cache(), ids, [10, 10]), one.model(ids).logits) < EXACT
