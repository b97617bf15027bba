"""Which random models there are, and the names that ask for them: read without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvbench.errors import KvbenchError, unknown

GEOMETRY = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate": "intermediate_size",
    "window": "sliding_window",
    "context": "max_position_embeddings",
    "vocab": "vocab_size",
}
LATENT_GEOMETRY = {
    "latent": "kv_lora_rank",
    "query_latent": "q_lora_rank",
    "rope": "qk_rope_head_dim",
    "nope": "qk_nope_head_dim",
    "value": "v_head_dim",
}
"""Further keys of families with multi-head latent attention."""
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
BASE: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 2048,
    "vocab_size": len(SPECIAL_TOKENS) + 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Family:
    """How a family's tiny config, of a class of transformers, differs from ``BASE``; what of the geometry it lacks."""

    config: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    lacks: frozenset[str] = frozenset()
    experts: bool = False

    @property
    def keys(self) -> dict[str, str]:
        """What of the geometry can be requested, and the config's word for it."""
        keys = GEOMETRY | (LATENT_GEOMETRY if "kv_lora_rank" in self.extra else {})
        return {key: name for key, name in keys.items() if key not in self.lacks}

    def values(self, overrides: Mapping[str, int]) -> dict[str, Any]:
        """The fields of its config, with ``overrides`` by the keys of the geometry."""
        return BASE | dict(self.extra) | {self.keys[key]: value for key, value in overrides.items() if key != "seed"}


_NO_WINDOW = frozenset({"window"})
_MULTI_HEAD = _NO_WINDOW | {"kv_heads", "head_dim"}
_EXPERTS = {"num_experts_per_tok": 2}
_LATENT = {
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
}
_DEEPSEEK = {
    **_LATENT,
    **_EXPERTS,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 48,
    "max_position_embeddings": 16384,
}
FAMILIES = {
    "llama": Family("LlamaConfig", lacks=_NO_WINDOW),
    "qwen2": Family("Qwen2Config", lacks=_NO_WINDOW),
    "qwen2_swa": Family("Qwen2Config", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": Family("Qwen3Config", {"head_dim": 32}, lacks=_NO_WINDOW),
    "mistral": Family("MistralConfig", {"sliding_window": 8, "head_dim": 16}),
    "mistral_full": Family("MistralConfig", {"sliding_window": None, "head_dim": 16}, lacks=_NO_WINDOW),
    "gemma2": Family("Gemma2Config", {"head_dim": 32, "sliding_window": 8}),
    "gemma3": Family("Gemma3TextConfig", {"num_hidden_layers": 4, "head_dim": 32, "sliding_window": 8}),
    "phi": Family("PhiConfig", {"qk_layernorm": True}, lacks=_NO_WINDOW | {"head_dim"}),
    "phi3": Family("Phi3Config", lacks=_NO_WINDOW),
    "gpt_neox": Family("GPTNeoXConfig", lacks=_MULTI_HEAD),
    "opt": Family("OPTConfig", lacks=_MULTI_HEAD),
    "gpt2": Family("GPT2Config", lacks=_MULTI_HEAD),
    "mixtral": Family("MixtralConfig", {**_EXPERTS, "num_local_experts": 4}, lacks=_NO_WINDOW, experts=True),
    "qwen3_moe": Family(
        "Qwen3MoeConfig",
        {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 48, "head_dim": 32},
        lacks=_NO_WINDOW | {"intermediate"},
        experts=True,
    ),
    "gpt_oss": Family(
        "GptOssConfig",
        {**_EXPERTS, "num_local_experts": 4, "head_dim": 16, "sliding_window": 8},
        experts=True,
    ),
    "deepseek_v2": Family(
        "DeepseekV2Config", {**_DEEPSEEK, "q_lora_rank": None}, lacks=_MULTI_HEAD, experts=True
    ),  # as V2-Lite
    "deepseek_v3": Family(
        "DeepseekV3Config",
        {**_DEEPSEEK, "q_lora_rank": 20, "n_group": 2, "topk_group": 1},
        lacks=_MULTI_HEAD,
        experts=True,
    ),
    "minicpm3": Family("MiniCPM3Config", {**_LATENT, "q_lora_rank": 20}, lacks=_MULTI_HEAD),
}


def parse(name: str) -> tuple[str, dict[str, int]]:
    """Split ``random:llama?layers=4,seed=1`` into the family and its overrides.

    Raises:
        KvbenchError: unknown family or key, or a value that is not a positive integer (a seed may be 0).
    """
    family, _, query = name.removeprefix("random:").partition("?")
    family = family.replace("-", "_")  # as people write deepseek-v3
    overrides = {}
    for part in filter(None, query.split(",")):
        key, _, value = part.partition("=")
        if not re.fullmatch("[0-9]{1,9}", value) or (int(value) == 0 and key != "seed"):
            raise KvbenchError(f"{name}: {part!r} is not <key>=<positive integer>")
        overrides[key] = int(value)
    check(family, overrides)
    return family, overrides


def check(family: str, overrides: Mapping[str, int]) -> None:
    """Raises KvbenchError for a family or a key that does not exist, and for sizes that do not fit together."""
    if family not in FAMILIES:
        raise unknown("random model family", family, FAMILIES)
    allowed = {*FAMILIES[family].keys, "seed"}
    for key in overrides:
        if key not in allowed:
            raise unknown(f"geometry key of random:{family}", key, allowed)
    if overrides.get("vocab", BASE["vocab_size"]) < BASE["vocab_size"]:
        raise KvbenchError(f"random:{family}: vocab must be at least {BASE['vocab_size']}, one id a byte and 3 more")
    values = FAMILIES[family].values(overrides)
    if "head_dim" not in values and values["hidden_size"] % values["num_attention_heads"]:
        raise KvbenchError(f"random:{family}: hidden must be a multiple of heads unless head_dim is given")
    if "kv_heads" not in FAMILIES[family].lacks and values["num_attention_heads"] % values["num_key_value_heads"]:
        raise KvbenchError(f"random:{family}: heads must be a multiple of kv_heads")
