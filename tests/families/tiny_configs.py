"""A model of any decoder family of the installed transformers, so small that it is made in a blink.

Fields of the config are shrunk by their names, whatever the family, in every part of a composite model. One layer is
left of every kind that the family has, and two where all are of one kind.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kvbench.models.random_models import cast
from kvbench.models.random_weights import fill

FAMILIES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
"""All that transformers calls causal language models."""
VOCABULARY = 64
SIZES = {
    VOCABULARY: "vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size audio_vocab_size",
    # positions and windows
    128: "max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions",
    8: "sliding_window attention_chunk_size sliding_window_size window_size attention_window_size local_attention "
    # widths of a head, a state, a latent
    "head_dim swa_head_dim d_kv d_head dim_head kv_channels attention_head_size qk_rope_head_dim v_head_dim "
    "index_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim mamba_d_head mamba_head_dim rotary_dim "
    "hidden_size_per_layer_input laurel_rank d_rel state_size mamba_d_state ssm_state_size attention_head_dim "
    "mamba_n_heads mamba_num_heads time_step_rank mamba_dt_rank chunk_size mamba_chunk_size block_size "
    "router_hidden_size",
    16: "qk_nope_head_dim kv_lora_rank q_lora_rank o_lora_rank qk_head_dim",
    # heads and experts
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads conf_num_attention_heads swa_num_attention_heads "
    "linear_num_value_heads linear_num_heads num_experts n_routed_experts num_local_experts moe_num_experts "
    "zero_expert_num",
    2: "num_key_value_heads swa_num_key_value_heads num_kv_heads kv_n_heads linear_num_key_heads index_n_heads "
    "num_experts_per_tok moe_topk moe_top_k moe_k n_group topk_group num_shared_experts o_groups n_groups index_topk "
    "num_codebooks",
    # widths of a layer
    32: "hidden_size n_embd d_model embedding_size emb_dim word_embed_proj_dim embedding_dim input_embedding_size "
    "output_embedding_size",
    48: "intermediate_size moe_intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size d_ff dff "
    "dim_ff d_inner n_inner feed_forward_size expert_ffn_hidden_size shared_expert_intermediate_size "
    "shared_intermediate_size intermediate_size_mlp dense_intermediate_size moe_shared_expert_intermediate_size "
    "shared_experts_intermediate_size",
}
LAYERS = (
    "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
    "num_encoder_layers depth num_blocks num_layers_per_stack conf_num_hidden_layers"
)
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_BOTH = ["sliding_attention", "full_attention"]
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_SHARED_KV = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": _BOTH * 2}
FITTED: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 50, "encoder_hash_byte_group_size": [3]},
    "cohere_compass_text": {"layer_types": _BOTH, "rope_parameters": dict.fromkeys(_BOTH, _ROPE)},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "head_dim": 24,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 8,
        "swa_head_dim": 24,
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.5, 0.0] * 2, **_SHARED_KV},
    "gemma4_text": {"global_head_dim": 16, **_SHARED_KV},
    "gemma4_unified_text": {"global_head_dim": 16, **_SHARED_KV},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "longcat_flash": {"qk_rope_head_dim": 8, "qk_head_dim": 24, "head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {
        "num_hidden_layers": 3,
        "layer_types": ["chunked_attention", "full_attention", "full_attention"],
        "no_rope_layers": [1, 0, 1],
        "floor_scale": 4,  # temperatures that change within a few tokens
    },
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 16)},
    "roc_bert": {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "shape_vocab_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
}
"""What a family needs beyond small numbers."""
PARTS = {
    "dots3_note": "text_config",
    "gemma3n": "text_config",  # its vision tower is another package's
    "musicgen": "decoder",
    "musicgen_melody": "decoder",
}
"""Composite families of which a part is tried: the language model, which holds the cache."""
UNBUILT = {"gemma4_assistant": "transformers cannot build it: its layers have no cache of their own"}


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """Of the family that transformers calls by this name, with seeded weights in fp64."""
    whole = kind = CONFIG_MAPPING[family]
    if family in PARTS:
        kind = type(getattr(whole(), PARTS[family]))
    config = small(kind)
    made = AutoModelForCausalLM.from_config if kind in MAPPING else MAPPING[whole]._from_config
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = made(config, dtype=torch.float32, experts_implementation="eager")
    fill(model, seed)
    model.generation_config.eos_token_id = None
    return cast(model.eval(), torch.float64).requires_grad_(False)


def small(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A tiny config of this class."""
    default = kind()
    names = [field.name for field in fields(kind) if field.init]
    old = {name: _value(default, name) for name in names}
    fitted = FITTED.get(kind.model_type, {})
    layers = next((old[name] for name in LAYERS.split() if old.get(name)), None)
    lists = {name: value for name, value in old.items() if _is_per_layer(value, layers)}
    kept = _one_of_each_kind(lists)
    values = {name: _smaller(name, value) for name, value in old.items()}
    values |= {name: [value[layer] for layer in kept] for name, value in lists.items()}
    values |= {name: len(kept) for name in LAYERS.split() if old.get(name)}
    values = {name: value for name, value in values.items() if value is not None}
    if "kv_lora_rank" in names and "num_key_value_heads" in names:
        values["num_key_value_heads"] = SMALL["num_attention_heads"]
    return kind(**values | fitted)


def _smaller(name: str, value: Any) -> Any:
    if name in IDS:
        return IDS[name]
    if name == "is_decoder" and value is False:
        return True
    if isinstance(value, PreTrainedConfig):
        return small(type(value))
    if name in SMALL and (name in ("head_dim", "num_key_value_heads") or _is_count(value)):
        return SMALL[name] if value is None else min(SMALL[name], value)
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_per_layer(value: Any, layers: int | None) -> bool:
    return isinstance(value, list) and 2 < len(value) == layers


def _one_of_each_kind(lists: dict[str, list[Any]]) -> list[int]:
    """The first layer of every kind, two at least; lists of layers' numbers say nothing."""
    telling = [value for value in lists.values() if value != list(range(len(value)))]
    first: dict[str, int] = {}
    for layer, kind in enumerate(zip(*telling, strict=True)):
        first.setdefault(str(kind), layer)
    return list(first.values()) if len(first) > 1 else [0, 1]


def _value(config: PreTrainedConfig, name: str) -> Any:
    """None where it is not the same for all layers."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return None
