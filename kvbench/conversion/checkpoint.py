"""A whole model with DeepSeek-V3's layers, as stock transformers builds it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DeepseekV3Config, PreTrainedConfig, PreTrainedModel

from kvbench.cache.attach import Plan
from kvbench.codecs.joint import DecoupledCodec
from kvbench.codecs.quantizers.base import Passthrough
from kvbench.conversion.attention import LatentLayer, converted
from kvbench.conversion.rope_table import rope_parameters
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import ModelGeometry

COPIED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)
"""Words that both configs use for the same thing."""
NO_EXPERTS: dict[str, Any] = {
    "n_routed_experts": 1,
    "n_shared_experts": 1,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_mtp_layers": 0,
}
"""Of the experts that no layer has."""


def latent_layers(geometry: ModelGeometry, plan: Plan) -> list[LatentLayer]:
    """The layers of ``plan``, whose RoPE slices all keep the same frequencies.

    Raises:
        KvbenchError: a layer is not compressed by ``mla`` alone, or slices differ.
    """
    layers = []
    for layer in geometry.layers:
        chosen = plan.layers.get(layer.layer)
        codec = None if chosen is None else chosen.codec
        if chosen is None or chosen.selector is not None or not isinstance(codec, DecoupledCodec):
            raise KvbenchError("only what mla makes can be written as weights: a RoPE slice and a joint latent")
        if not all(isinstance(side.quantizer, Passthrough) for side in codec.sides.values()):
            raise KvbenchError("a quantizer cannot be written as weights: convert mla alone, and quantize its latents")
        layers.append(LatentLayer.of(layer, codec))
    if len({layer.frequencies for layer in layers}) > 1:
        raise KvbenchError(
            "the layers keep RoPE at different frequencies, and DeepSeek's share one table; use mla with choice=shared"
        )
    return layers


@torch.no_grad()
def latent_model(model: PreTrainedModel, layers: list[LatentLayer]) -> PreTrainedModel:
    """``model`` with ``layers`` for its attention, in its dtype, on the CPU: everything else is copied."""
    made: PreTrainedModel = AutoModelForCausalLM.from_config(_config(model, layers), dtype=model.dtype)
    made.load_state_dict(_tensors(model, layers), strict=True)
    made.generation_config = model.generation_config
    return made.eval().requires_grad_(False)


def _config(model: PreTrainedModel, layers: list[LatentLayer]) -> PreTrainedConfig:
    """DeepSeek-V3's config, every layer dense."""
    config, first, attention = model.config, layers[0], model.model.layers[0].self_attn  # type: ignore[union-attr,index]
    geometry, rotary = first.geometry, model.model.rotary_emb  # type: ignore[union-attr]
    frequencies = rotary.inv_freq.float().cpu()[list(first.frequencies)]  # type: ignore[union-attr,operator,index]
    context = int(config.max_position_embeddings)
    biased = attention.q_proj.bias is not None  # type: ignore[union-attr]
    return DeepseekV3Config(
        **{name: getattr(config, name) for name in COPIED},
        **NO_EXPERTS,
        first_k_dense_replace=config.num_hidden_layers,
        moe_intermediate_size=config.intermediate_size,
        num_key_value_heads=geometry.heads,
        kv_lora_rank=first.joint.rank + 1,  # and the constant
        q_lora_rank=geometry.heads * geometry.head_dim + 1 if biased else None,
        qk_rope_head_dim=first.rope.rank,
        qk_nope_head_dim=geometry.head_dim,
        v_head_dim=geometry.value_dim,
        attention_bias=True,
        rope_parameters=rope_parameters(frequencies, float(rotary.attention_scaling), context),  # type: ignore[arg-type]
    )


def _tensors(model: PreTrainedModel, layers: list[LatentLayer]) -> dict[str, Tensor]:
    """The state dict: projections of attention converted, everything else as it is."""
    tensors = {name: tensor.cpu() for name, tensor in model.state_dict().items() if ".self_attn." not in name}
    for layer in layers:
        index = layer.geometry.layer
        block = model.model.layers[index]  # type: ignore[union-attr,index]
        for name, tensor in converted(block.self_attn, block.input_layernorm, layer, model.dtype).items():  # type: ignore[arg-type,union-attr]
            tensors[f"model.layers.{index}.self_attn.{name}"] = tensor.to(model.dtype)
    return tensors
