"""Models with latent attention, made out of others: what they compute, in fp64 and after a trip through a folder."""

from pathlib import Path

import pytest
import torch
import transformers
from driving import Subject, calibrated, feed, subject, token_ids, worst

from kvbench.cache.attach import CompressedModel, Plan
from kvbench.compressors.compressor import parse
from kvbench.conversion.checkpoint import latent_layers, latent_model, save
from kvbench.conversion.reference import logits_through_codecs
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import probe_geometry

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
