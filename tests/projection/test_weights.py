"""Parameters are counted from a config; transformers, building the same model on the meta device, agrees."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV2Config, DeepseekV3Config, PreTrainedConfig

from kvbench.errors import KvbenchError
from kvbench.models.public_configs import public_names, read_config
from kvbench.models.random_families import BASE
from kvbench.models.random_models import build
from kvbench.projection.families import FAMILIES
from kvbench.projection.shape import shape_of

LATENT = {
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
}
TINY_LATENT = {
    "without query latent": DeepseekV2Config(**BASE | LATENT, q_lora_rank=None),
    "with query latent": DeepseekV3Config(**BASE | LATENT, q_lora_rank=40),
    "with biases": DeepseekV3Config(**BASE | LATENT, q_lora_rank=40, attention_bias=True),
    "tied": DeepseekV3Config(**BASE | LATENT, q_lora_rank=40, tie_word_embeddings=True),
}


def built(config: PreTrainedConfig) -> int:
    """Parameters of the model that transformers builds."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", public_names())
def test_public_models_have_the_parameters_that_are_counted(name: str):
    _, config = read_config(name)
    assert shape_of(name, config).weights.total == built(config)


@pytest.mark.parametrize("kind", TINY_LATENT)
def test_latent_attention_is_counted(kind: str):
    assert shape_of(kind, TINY_LATENT[kind]).weights.total == built(TINY_LATENT[kind])


RANDOM = ("llama", "qwen2", "qwen2_swa", "qwen3", "mistral", "gemma2", "gemma3", "mixtral", "qwen3_moe")


@pytest.mark.parametrize("family", RANDOM)
def test_every_family_is_counted(family: str):
    model = build(family)
    shape = shape_of(family, model.config)
    assert shape.weights.total == sum(parameter.numel() for parameter in model.parameters())
    assert shape.weights.active <= shape.weights.total


def test_every_family_is_tested():
    tested = {build(family, layers=1).config.get_text_config().model_type for family in RANDOM if family != "gemma3"}
    tested |= {config.model_type for config in TINY_LATENT.values()} | {"gemma3_text"}
    assert tested == set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        # DeepSeek-V3 technical report (arXiv 2412.19437): 671 B parameters, 37 B activated a token.
        ("deepseek-v3", 671, 37),
        # DeepSeek-V2 (arXiv 2405.04434, appendix B): Lite has 15.7 B parameters and activates 2.4 B.
        ("deepseek-v2-lite", 15.7, 2.4),
        # Qwen3 technical report (arXiv 2505.09388): 30.5 B parameters, 3.3 B activated, embedding included.
        ("qwen3-30b-a3b", 30.5, 3.3 - 0.3),
        ("llama-3.1-8b", 8.0, 8.0 - 0.5),
    ],
)
def test_totals_are_those_that_authors_state(name: str, total: float, active: float):
    weights = shape_of(*read_config(name)).weights
    assert weights.total / 1e9 == pytest.approx(total, rel=0.01)
    assert weights.active / 1e9 == pytest.approx(active, rel=0.025)


def test_one_layer_of_deepseek_v3_by_hand():
    """Of its attention: queries down to 1,536 and up to 128 heads of 192; the latent 512 + 64 down, up to 128 heads of
    128 + 128; out of 128 heads of 128. An expert is 3 · 7168 · 2048."""
    weights = shape_of(*read_config("deepseek-v3")).weights
    assert weights.shared == 61 * 7168 * (1536 + 512 + 64)
    assert weights.by_heads == 61 * 128 * (1536 * 192 + 512 * 256 + 128 * 7168)
    assert weights.experts is not None and weights.experts.size == 3 * 7168 * 2048
    assert weights.experts.total == 58 * 256 * weights.experts.size
    assert weights.mlps == 3 * 3 * 7168 * 18432 + 58 * weights.experts.size


def test_more_experts_a_token_than_there_are_is_refused():
    config = DeepseekV3Config(**BASE | LATENT | {"num_experts_per_tok": 9}, q_lora_rank=40)
    with pytest.raises(KvbenchError, match="9 experts a token, but there are 8"):
        shape_of("broken", config)
