"""Models with latent attention, made out of others: what they compute, in fp64 and after a trip through a folder."""

from pathlib import Path

import pytest
import torch
import transformers
from driving import Subject, calibrated, feed, subject, token_ids, worst

from kvbench.cache.attach import CompressedModel, Plan
from kvbench.calibration.collect import collect
from kvbench.compressors.compressor import parse
from kvbench.conversion.checkpoint import latent_layers, latent_model
from kvbench.conversion.families import require_convertible
from kvbench.conversion.reference import logits_through_codecs
from kvbench.errors import KvbenchError, UnsupportedModelError
from kvbench.hooks.geometry import probe_geometry
from kvbench.kernels.reading import Reading
from kvbench.models.random_families import BASE
from kvbench.models.random_models import byte_tokenizer, cast
from kvbench.models.random_weights import fill
from kvbench.models.saved import write_folder

FAMILIES = ("llama", "qwen2", "mistral_full")
WHOLE = "mla:rope_dims=32,latent=32,choice=shared"
"""2 KV heads of 16 dimensions: 32 keep their RoPE, and 32 of the values are left for the latent."""
PART = "mla:rope_dims=8,latent=24,choice=shared"
EXACT = 1e-10


def fitted(one: Subject, spec: str) -> Plan:
    return parse(spec).fit(one.geometry, calibrated(one))


def made_of(one: Subject, plan: Plan) -> transformers.PreTrainedModel:
    return latent_model(one.model, latent_layers(one.geometry, plan))


@pytest.mark.usefixtures("fp64")
@pytest.mark.parametrize("family", FAMILIES)
def test_with_all_of_its_rank_it_is_the_model_it_was_made_of(family: str) -> None:
    one, ids = subject(family), token_ids(2, 40)
    made = made_of(one, fitted(one, WHOLE))
    assert type(made).__name__ == "DeepseekV3ForCausalLM"
    assert worst(made(ids).logits, one.model(ids).logits) < EXACT


@pytest.mark.usefixtures("fp64")
@pytest.mark.parametrize("family", FAMILIES)
def test_with_less_it_is_the_model_run_through_the_same_latents(family: str) -> None:
    one, ids = subject(family), token_ids(2, 40)
    plan = fitted(one, PART)
    expected = logits_through_codecs(one.model, one.geometry, plan, ids)
    assert worst(made_of(one, plan)(ids).logits, expected) < EXACT
    assert worst(one.model(ids).logits, expected) > 1e-2


@pytest.mark.usefixtures("fp64")
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Llama", {"attention_bias": True, "head_dim": 24}),
        ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
        ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}}),
        ("Qwen2", {"num_key_value_heads": 1, "num_attention_heads": 3, "head_dim": 16}),
    ],
    ids=["biases", "multi-head", "partial RoPE", "multi-query"],
)
def test_other_geometries(kind: str, changes: dict[str, object]) -> None:
    one = _subject(kind, **changes)
    first = one.geometry.layers[0]
    rope = first.kv_heads * first.rotary_dims
    plan = fitted(one, f"mla:rope_dims={rope},latent={first.elements_per_token - rope},choice=shared")
    ids = token_ids(1, 30)
    assert worst(made_of(one, plan)(ids).logits, one.model(ids).logits) < EXACT


def _subject(kind: str, **changes: object) -> Subject:
    config = getattr(transformers, f"{kind}Config")(**BASE | {"num_hidden_layers": 2} | changes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    fill(model, 0)
    model = cast(model.eval().requires_grad_(False), torch.float64)
    return Subject(kind, model, probe_geometry(model))


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("family", FAMILIES)
def test_stock_transformers_reads_it_from_a_folder(family: str, tmp_path: Path) -> None:
    one, ids = subject(family, torch.float32), token_ids(2, 40)
    plan = fitted(one, PART)
    write_folder(made_of(one, plan), byte_tokenizer(), tmp_path / "made")
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "made", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values())
    expected = logits_through_codecs(one.model, one.geometry, plan, ids)
    assert worst(loaded.eval()(ids).logits, expected) < 1e-5
    cache = transformers.DynamicCache(config=loaded.config)
    assert worst(feed(loaded, cache, ids, [30, *[1] * 10]), expected) < 1e-5


@pytest.mark.usefixtures("fp64")
def test_kvbench_carries_it_as_native_latent_attention() -> None:
    one, ids = subject("qwen2"), token_ids(2, 40)
    made = made_of(one, fitted(one, PART))
    geometry = probe_geometry(made)
    assert all(layer.latent and layer.elements_per_token == 24 + 1 + 8 for layer in geometry.layers)
    for spec in ("none", "pca:rank=1,frame=before"):  # before RoPE: its table must be the same at every length
        statistics = collect(made, geometry, token_ids(4, 96, seed=7))
        plan = parse(spec).fit(geometry, statistics)
        with CompressedModel(made, plan, geometry, Reading("reference")) as compressed:
            logits = feed(made, compressed.new_cache(), ids, [30, *[1] * 10])
        assert worst(logits, made(ids).logits) < EXACT


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bit_it_is_as_near_as_the_model_it_was_made_of(dtype: torch.dtype) -> None:
    wide, one, ids = subject("qwen2", torch.float32), subject("qwen2", dtype), token_ids(1, 40)
    expected = wide.model(ids).logits
    error = worst(one.model(ids).logits.float(), expected)
    assert worst(made_of(one, fitted(one, WHOLE))(ids).logits.float(), expected) < 4 * error


@pytest.mark.usefixtures("no_grad")
def test_layers_that_share_no_frequencies_are_refused() -> None:
    one = subject("llama")
    with pytest.raises(KvbenchError, match=r"^the layers keep RoPE at different frequencies.*choice=shared$"):
        latent_layers(one.geometry, fitted(one, "mla:rope_dims=8,latent=24"))
    with pytest.raises(KvbenchError, match="a quantizer cannot be written as weights"):
        latent_layers(one.geometry, fitted(one, f"{PART}+int:bits=8"))
    with pytest.raises(KvbenchError, match="only what mla makes"):
        latent_layers(one.geometry, fitted(one, "pca:rank=0.5"))


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("qwen3", "a qwen3 model has other layers; those of llama, mistral, qwen2 models fit"),
        ("gpt2", "a gpt2 model has other layers"),
        ("deepseek_v3", "a deepseek_v3 model has other layers"),
        ("mistral", "layers with a sliding window"),
        ("qwen2_swa", "layers with a sliding window"),
    ],
)
def test_other_families_are_refused(family: str, reason: str) -> None:
    one = subject(family)
    with pytest.raises(UnsupportedModelError, match=reason):
        require_convertible(one.model, one.geometry)


def test_what_the_layers_cannot_say_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="MLPs have biases"):
        biased = _subject("Llama", mlp_bias=True)
        require_convertible(biased.model, biased.geometry)
    with pytest.raises(UnsupportedModelError, match="depends on the length seen so far"):
        rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
        stretched = _subject("Llama", rope_parameters=rope)
        require_convertible(stretched.model, stretched.geometry)
