"""Multi-head latent attention: latents are all that is cached, and decoding in them equals the stock model."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
import transformers as tf
from driving import (
    FRAMES,
    SMALL_SPANS,
    Subject,
    calibrated,
    feed,
    left_padding,
    position_ids,
    subject,
    token_ids,
    worst,
)
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from kvbench.cache.attach import CompressedModel, Plan
from kvbench.cache.attends import attends, codec_way
from kvbench.cache.cache import CompressedCache
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.layer import ExactLayer
from kvbench.cache.one_step import CachesOfOneStep
from kvbench.cache.prediction import predict_bytes
from kvbench.cache.work import over_body, over_heads
from kvbench.codecs.frame import Frame
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError, UnsupportedModelError
from kvbench.hooks.geometry import probe_geometry
from kvbench.hooks.latent_attention import LatentAttention
from kvbench.kernels.reading import Reading
from kvbench.measure.arms import Arm
from kvbench.measure.prompt import exact_prompt
from kvbench.models.random_families import FAMILIES
from kvbench.models.random_models import cast
from kvbench.models.random_weights import fill

pytestmark = pytest.mark.usefixtures("fp64")
EXACT = 1e-10
TOKENS = 34
CHUNKS = (13, 11, *[1] * 10)
RANK, ROPE, NOPE, VALUE = 24, 8, 16, 12

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": RANK,
    "q_lora_rank": 20,
    "qk_rope_head_dim": ROPE,
    "qk_nope_head_dim": NOPE,
    "v_head_dim": VALUE,
    "max_position_embeddings": 256,
    "vocab_size": 259,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "n_routed_experts": 4, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
}
HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
RELATIVES: dict[str, tuple[type[PreTrainedModel], PreTrainedConfig]] = {
    "v2 with a query latent and YaRN": (
        tf.DeepseekV2ForCausalLM,
        tf.DeepseekV2Config(**SIZES, **EXPERTS, rope_parameters=YARN),
    ),
    "v3 without a query latent": (
        tf.DeepseekV3ForCausalLM,
        tf.DeepseekV3Config(**SIZES | {"q_lora_rank": None}, **EXPERTS),
    ),
    "v3 with RoPE of halves and YaRN": (
        tf.DeepseekV3ForCausalLM,
        tf.DeepseekV3Config(**SIZES, **EXPERTS, rope_interleave=False, rope_parameters=YARN),
    ),
    "glm4_moe_lite": (tf.Glm4MoeLiteForCausalLM, tf.Glm4MoeLiteConfig(**SIZES, **EXPERTS)),
    "youtu": (tf.YoutuForCausalLM, tf.YoutuConfig(**SIZES)),
    "axk1": (tf.AXK1ForCausalLM, tf.AXK1Config(**SIZES, **EXPERTS)),
    "mistral4": (tf.Mistral4ForCausalLM, tf.Mistral4Config(**SIZES, **EXPERTS)),
    "longcat_flash": (
        tf.LongcatFlashForCausalLM,
        tf.LongcatFlashConfig(
            **SIZES, head_dim=ROPE, n_routed_experts=4, moe_topk=2, zero_expert_num=2, expert_ffn_hidden_size=32
        ),
    ),
}
HYBRIDS: dict[str, tuple[type[PreTrainedModel], PreTrainedConfig]] = {
    "kimi_linear": (
        tf.KimiLinearForCausalLM,
        tf.KimiLinearConfig(**SIZES, **HYBRID, linear_head_dim=16, linear_num_heads=4),
    ),
    "bailing_hybrid": (
        tf.BailingHybridForCausalLM,
        tf.BailingHybridConfig(**SIZES, **HYBRID, head_dim=16, n_group=1, topk_group=1),
    ),
}
OWN = tuple(family for family in FAMILIES if subject(family).geometry.layers[0].latent)
relatives = pytest.mark.parametrize("name", RELATIVES)
"""Those of kvbench's own run through the tests of all families."""


@lru_cache(maxsize=32)
def one_of(name: str) -> Subject:
    """A random model of two layers."""
    if name in FAMILIES:
        return subject(name)
    model_class, config = (RELATIVES | HYBRIDS)[name]
    model = model_class._from_config(config, experts_implementation="eager")
    fill(model, 0)
    model.generation_config.eos_token_id = None
    model = cast(model.eval().requires_grad_(False), torch.float64)
    return Subject(name, model, probe_geometry(model))


def none(one: Subject) -> Plan:
    return parse("none").fit(one.geometry)


def plans(one: Subject) -> list[Plan]:
    """Uncompressed, and through encode and decode in every frame."""
    return [none(one), *(one.identity(frame) for frame in FRAMES)]


def test_families_with_latents() -> None:
    assert set(OWN) == {"deepseek_v2", "deepseek_v3", "minicpm3"}


@pytest.mark.parametrize("name", [*OWN, *RELATIVES, *HYBRIDS])
def test_prompt_chunk_and_steps_equal_the_stock_model(name: str) -> None:
    one, ids = one_of(name), token_ids(2, TOKENS)
    stock = one.model(ids, use_cache=False).logits
    for plan in plans(one):
        with one.attach_untested(plan) as compressed:
            cache = compressed.new_cache()
            assert worst(feed(one.model, cache, ids, CHUNKS), stock) < EXACT
            assert cache.attended_by == attends(plan, one.geometry)


@relatives
def test_left_padded_batch(name: str) -> None:
    one, ids, mask = one_of(name), token_ids(3, TOKENS), left_padding(3, TOKENS, (9, 2, 0))
    stock = one.model(ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False).logits
    for plan in plans(one)[:3]:
        with one.attach_untested(plan) as compressed:
            assert worst(feed(one.model, compressed.new_cache(), ids, CHUNKS, mask), stock, mask) < EXACT


@relatives
def test_crop(name: str) -> None:
    one, ids = one_of(name), token_ids(2, 2 * TOKENS)
    stock = one.model(ids, use_cache=False).logits
    for plan in plans(one)[:3]:
        with one.attach_untested(plan) as compressed:
            cache = compressed.new_cache()
            feed(one.model, cache, ids, [TOKENS])
            cache.crop(-17)
            assert (
                worst(feed(one.model, cache, ids, (9, 1, 17), start=TOKENS - 17), stock[:, TOKENS - 17 : -24]) < EXACT
            )


@relatives
def test_greedy_and_beam_tokens(name: str) -> None:
    one, ids, mask = one_of(name), token_ids(2, 15), left_padding(2, 15, (4, 0))
    for beams in (1, 3):
        options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "num_beams": beams}
        stock = one.model.generate(ids, **options)
        for plan in (none(one), one.identity("before")):
            with one.attach_untested(plan) as compressed:
                assert torch.equal(one.model.generate(ids, past_key_values=compressed.new_cache(), **options), stock)


@pytest.mark.parametrize("absorbs", [True, False], ids=["absorbed", "expanded"])
@pytest.mark.parametrize("name", OWN)
def test_either_form_equals_the_stock_model(name: str, absorbs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatentAttention, "absorbs", lambda *_: absorbs)
    one, ids = one_of(name), token_ids(2, TOKENS)
    stock = one.model(ids, use_cache=False).logits
    for plan in plans(one):
        with one.attach_untested(plan) as compressed:
            cache = compressed.new_cache()
            head = feed(one.model, cache, ids, [5])
            cache.as_decoded = True
            assert worst(torch.cat([head, feed(one.model, cache, ids, (17, 1, 1, 10), start=5)], 1), stock) < EXACT


def test_the_cheaper_form_is_taken() -> None:
    """With DeepSeek-V3's sizes a query costs 768 · 128 more multiplications a token, expanding it 131,072 · 128."""
    attention = LatentAttention(_latent_module(heads=128, rank=512, rope=64, nope=128, value=128))
    assert attention.absorbs(1, 2) and attention.absorbs(1, 100_000), "decoding"
    assert not any(attention.absorbs(tokens, tokens) for tokens in (16, 512, 4096)), "a prompt"
    assert attention.absorbs(170, 10**7) and not attention.absorbs(171, 10**7), "a chunk on a long context"


@pytest.mark.parametrize("spec", ["none", "identity:frame=before", "int:bits=8", "pca:rank=0.5", "fp8"])
def test_decoding_never_expands_the_cache(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, ids = one_of("deepseek_v3"), token_ids(1, TOKENS)
    with one.attach_untested(small(one, spec)) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [TOKENS - 3])
        monkeypatch.delattr(LatentAttention, "expand")
        feed(one.model, cache, ids, [1, 1, 1], start=TOKENS - 3)
    assert set(cache.attended_by.split(" | ")) <= {"torch absorbed", "torch latents"}


@pytest.mark.parametrize("name", [*OWN, *RELATIVES])
def test_a_token_takes_its_latent_and_one_rope_key(name: str) -> None:
    one, ids = one_of(name), token_ids(3, TOKENS)
    layers, element = len(one.geometry.layers), 8
    for tokens in (20, TOKENS):
        with one.attach_untested(none(one)) as compressed:
            cache = compressed.new_cache()
            feed(one.model, cache, ids[:, :tokens], [tokens])
        assert cache.nbytes().total == 3 * tokens * layers * (RANK + ROPE) * element
        assert one.geometry.elements(tokens) == tokens * layers * (RANK + ROPE)


@pytest.mark.parametrize("side", ["tail_keys", "tail_values"])
def test_control_perturbed_latents_move_the_logits(side: str) -> None:
    one, ids = one_of("deepseek_v3"), token_ids(2, TOKENS)
    stock = one.model(ids, use_cache=False).logits[:, -1:]
    with one.attach_untested(none(one)) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [TOKENS - 1])
        for layer in cache.layers:
            assert isinstance(layer, ExactLayer)
            getattr(layer, side).data += 0.01 * torch.randn(getattr(layer, side).data.shape, dtype=torch.float64)
        assert 1e4 * EXACT < worst(feed(one.model, cache, ids, [1], start=TOKENS - 1), stock) < 0.1


def small(one: Subject, spec: str) -> Plan:
    """``spec`` fitted, with spans that a few dozen tokens fill."""
    with torch.enable_grad():
        return replace(parse(spec), spans=SMALL_SPANS).fit(one.geometry, lambda: calibrated(one))


def steps(one: Subject, plan: Plan, reading: Reading, mask: Tensor | None = None) -> tuple[Tensor, CompressedCache]:
    """Logits of ten decoded tokens, and the cache."""
    with CompressedModel(one.model, plan, one.geometry, reading) as compressed:
        cache = compressed.new_cache()
        logits = feed(one.model, cache, token_ids(2, 60), [50] + [1] * 10, mask)
    return logits[:, 50:], cache


COMPRESSED = (
    "int:bits=8",
    "int:bits=4",
    "fp8",
    "fp8:group=8,side=values",
    "cast:to=fp8",
    "kivi:bits=4,group=8",
    "pca:rank=0.75",
    "pca:rank=0.75,frame=after+int:bits=8,group=8",
    "kvtc:bits=6",
    "kvtc:bits=6,frame=bands",
    "svdq:bits=8,group=8",
    "latent:rank=0.75",
    "xkv:rank=0.75,layers=2",
    "random:budget=0.5+int:bits=8",
)


@pytest.mark.parametrize("spec", COMPRESSED)
def test_compressed_latents(spec: str) -> None:
    """Bytes are as predicted, what attends too, and however latents are read, the model says the same."""
    one = one_of("deepseek_v3")
    plan = small(one, spec)
    _, cache = steps(one, plan, Reading())
    assert all(isinstance(layer, CompressedLayer) and layer.body.entries >= 24 for layer in cache.layers)
    assert cache.attended_by == attends(plan, one.geometry)
    for padding in (None, left_padding(2, 60, (7, 0))):
        rebuilt, _ = steps(one, plan, Reading("reference", "reconstruct"), padding)
        assert worst(steps(one, plan, Reading(), padding)[0], rebuilt) < 1e-6
    with one.attach_untested(plan) as compressed:
        prefilled = compressed.new_cache()
        feed(one.model, prefilled, token_ids(2, 60), [60])
    assert prefilled.nbytes().total == predict_bytes(plan, one.geometry, 60, batch=2)


def test_multiplications_of_a_step_by_hand() -> None:
    """Scores are as wide as RoPE key and latent, sums as the latent; a codec's basis is gone through twice."""
    one, tokens = one_of("deepseek_v3"), 40
    layer, heads = one.geometry.layers[0], 4
    assert over_heads(layer, tokens) == heads * tokens * (ROPE + 2 * RANK)
    for spec, rank, more in (
        ("int:bits=8", RANK, 0),
        ("pca:rank=0.5,frame=after", RANK // 2, tokens * ROPE * ROPE // 2 + 2 * heads * RANK * RANK // 2),
    ):
        codec = small(one, spec).layers[0].codec
        assert codec is not None
        read = over_body(codec, layer, codec_way(codec, layer, one.geometry), tokens)
        assert read == heads * tokens * (ROPE + 2 * rank) + more


def test_eight_bits_are_close_and_two_are_not() -> None:
    one = one_of("deepseek_v3")
    exact, _ = steps(one, none(one), Reading())
    errors = [worst(steps(one, small(one, f"int:bits={bits},group=8"), Reading())[0], exact) for bits in (2, 8)]
    assert errors[1] < 0.01 < errors[0]


@pytest.mark.parametrize("spec", ["none", "int:bits=8", "kvtc:bits=6", "hf"])
@pytest.mark.parametrize("name", OWN)
def test_a_cache_filled_from_a_prompt_goes_on_as_one_that_was_prefilled(name: str, spec: str) -> None:
    one, ids = one_of(name), token_ids(1, 40)
    prompt = exact_prompt(one.model, one.geometry, ids[:, :30])
    plan = None if spec == "hf" else small(one, spec)
    arm = Arm.of(spec, one.model, one.geometry, plan)
    with arm.entered():
        filled, prefilled = arm.fill(prompt, 2), arm.new_cache()
        arm.forward(ids[:, :30].expand(2, -1), prefilled)
        outputs = [feed(one.model, cache, ids.expand(2, -1), [1] * 10, start=30) for cache in (filled, prefilled)]
    assert worst(*outputs) < EXACT


@pytest.mark.parametrize("spec", ["none", "int:bits=8", "kvtc:bits=6"])
@pytest.mark.parametrize("name", OWN)
def test_caches_of_different_lengths_share_a_step(name: str, spec: str) -> None:
    one, ids = one_of(name), token_ids(3, 40)
    plan, lengths = small(one, spec), (20, 33, 33)
    with one.attach_untested(plan) as compressed:
        shared, alone = ([compressed.new_cache() for _ in lengths] for _ in range(2))
        for row, length in enumerate(lengths):
            for caches in (shared, alone):
                feed(one.model, caches[row], ids[row : row + 1, :length], [length])
        together = CachesOfOneStep(shared)
        for new in ids[:, -3:].T[..., None]:
            logits = one.model(new, past_key_values=together, position_ids=together.positions(ids.device)).logits
            rows = [feed(one.model, cache, token[None], [1]) for cache, token in zip(alone, new, strict=True)]
            assert worst(logits, torch.cat(rows)) < EXACT


@pytest.mark.parametrize("name", HYBRIDS)
def test_the_state_of_other_layers_is_no_part_of_a_prompt(name: str) -> None:
    one = one_of(name)
    with pytest.raises(UnsupportedModelError, match="layer 0 keeps a state instead of keys and values"):
        exact_prompt(one.model, one.geometry, token_ids(1, 20))


def test_leaving_restores_the_model() -> None:
    one, ids = one_of("deepseek_v2"), token_ids(2, 20)
    modules = [module for module in one.model.modules() if hasattr(module, "expand_kv")]
    logits = one.model(ids).logits
    first, second = one.attach(none(one)), one.attach(one.identity())
    with first:
        second.__enter__()
    assert len(modules) == 2 and all(isinstance(module.expand_kv, LatentAttention) for module in modules)
    assert worst(feed(one.model, second.new_cache(), ids, [19, 1]), logits) < EXACT
    assert worst(feed(one.model, one.stock_cache(), ids, [19, 1]), logits) < EXACT
    second.__exit__()
    assert len(modules) == 2 and not any("expand_kv" in vars(module) for module in modules)
    assert torch.equal(one.model(ids).logits, logits)


def test_another_attention_function_meanwhile() -> None:
    one, ids = one_of("deepseek_v3"), token_ids(2, 20)
    logits = one.model(ids).logits
    with one.attach(none(one)) as compressed:
        one.model.set_attn_implementation("sdpa")
        assert worst(feed(one.model, one.stock_cache(), ids, [19, 1]), logits) < EXACT
        with pytest.raises(KvbenchError, match="'sdpa' while a compressed cache is attached"):
            feed(one.model, compressed.new_cache(), ids, [20])


@pytest.mark.parametrize(
    "spec, reason",
    [
        ("snapkv:budget=0.5", "stores no keys of heads"),
        ("knorm:budget=0.5", "stores no keys of heads"),
        ("mla:latent=8,rope_dims=4", "latent attention already"),
        ("svd:rank=0.5", "not linear"),
    ],
)
def test_methods_that_need_heads_are_refused_in_one_line(spec: str, reason: str) -> None:
    one = one_of("deepseek_v3")
    with pytest.raises(KvbenchError, match=reason) as refused:
        one.attach_untested(small(one, spec))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["DeepseekV32", "GlmMoeDsa"])
def test_sparse_attention_is_refused_in_one_line(name: str) -> None:
    config = getattr(tf, f"{name}Config")(**SIZES, **EXPERTS)
    model = getattr(tf, f"{name}ForCausalLM")(config).eval()
    with pytest.raises(
        UnsupportedModelError, match=r"^\w+Attention: an indexer picks the tokens.* dense attention only$"
    ):
        probe_geometry(model)


class _Latent(nn.Module):
    def expand_kv(self, latents: Tensor, rope_keys: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def _latent_module(heads: int, rank: int, rope: int, nope: int, value: int) -> nn.Module:
    module = _Latent()
    module.num_heads, module.kv_lora_rank, module.v_head_dim = heads, rank, value
    module.qk_rope_head_dim, module.qk_nope_head_dim = rope, nope
    module.kv_b_proj = nn.Linear(rank, heads * (nope + value), bias=False, device="meta")
    return module


def test_missing_sizes_and_other_projections_are_refused_in_one_line() -> None:
    sizes = {"heads": 2, "rank": 6, "rope": 2, "nope": 3, "value": 4}
    module = _latent_module(**sizes)
    del module.kv_lora_rank, module.v_head_dim
    with pytest.raises(UnsupportedModelError, match=r"^_Latent: .* without kv_lora_rank, v_head_dim$"):
        LatentAttention(module)
    for projection in (nn.Linear(6, 14), nn.Linear(6, 13, bias=False), nn.Identity(), None):
        module = _latent_module(**sizes)
        module.kv_b_proj = projection
        with pytest.raises(UnsupportedModelError, match=r"^_Latent: kv_b_proj, a \w+, is no plain linear layer.*$"):
            LatentAttention(module)


@pytest.mark.parametrize("frame", FRAMES)
def test_a_model_of_another_kind_is_found_out(frame: Frame, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that is not what its sizes say fails the self-test."""
    one = one_of("youtu")
    absorb = LatentAttention.absorb
    monkeypatch.setattr(LatentAttention, "absorb", lambda self, query: absorb(self, query) * 1.01)
    with pytest.raises(UnsupportedModelError, match="cannot carry a compressed cache"):
        one.attach(one.identity(frame))
