"""How the parameters of a model family follow from its config, where families differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A decoder with gated MLPs and RMS norms. Names are fields of the config, "" where the family has no such thing.

    ``query_bias`` is the field that gives queries, keys and values a bias ("always": they have one), ``output_bias``
    the same of the attention's output and ``mlp_bias`` of MLPs. ``norms`` of the hidden width are in every layer;
    ``head_norms`` says whether queries and keys have one of a head's width. ``experts`` and ``expert_width`` are the
    number and width of routed experts.
    """

    query_bias: str = ""
    output_bias: str = ""
    mlp_bias: str = ""
    norms: int = 2
    head_norms: bool = False
    latent: bool = False
    experts: str = ""
    expert_width: str = ""


_DEEPSEEK = Family(latent=True, experts="n_routed_experts", expert_width="moe_intermediate_size")
FAMILIES = {
    "llama": Family("attention_bias", "attention_bias", "mlp_bias"),
    "mistral": Family(),
    "qwen2": Family("always"),
    "qwen3": Family("attention_bias", "attention_bias", head_norms=True),
    "gemma2": Family("attention_bias", "attention_bias", norms=4),
    "gemma3_text": Family("attention_bias", "attention_bias", norms=4, head_norms=True),
    "mixtral": Family(experts="num_local_experts", expert_width="intermediate_size"),
    "qwen3_moe": Family(
        "attention_bias",
        "attention_bias",
        head_norms=True,
        experts="num_experts",
        expert_width="moe_intermediate_size",
    ),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
}
"""By ``model_type``."""
