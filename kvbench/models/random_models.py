"""``random:<family>``: seeded tiny models of every supported family, for tests, conformance and speed-only runs.

Biases and norms get noise, so that nothing a compressor might forget is zero or one. The same seed gives the same
weights in every dtype and on every machine. Any geometry can be requested, such as SmolLM2's with fewer layers:
``random:llama?layers=4,hidden=576,heads=9,kv_heads=3,head_dim=64``, or the attention of DeepSeek-V2-Lite:
``random:deepseek_v2?heads=16,latent=512,rope=64,nope=128,value=128``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from kvbench.errors import KvbenchError, unknown
from kvbench.models.random_weights import fill

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
    """How a family's tiny config differs from ``BASE``, and which parts of the geometry it does not have."""

    config: type[PreTrainedConfig]
    extra: Mapping[str, Any] = field(default_factory=dict)
    lacks: frozenset[str] = frozenset()
    experts: bool = False

    @property
    def keys(self) -> dict[str, str]:
        """What of the geometry can be requested, and the config's word for it."""
        keys = GEOMETRY | (LATENT_GEOMETRY if "kv_lora_rank" in self.extra else {})
        return {key: name for key, name in keys.items() if key not in self.lacks}


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
}
FAMILIES = {
    "llama": Family(tf.LlamaConfig, lacks=_NO_WINDOW),
    "qwen2": Family(tf.Qwen2Config, lacks=_NO_WINDOW),
    "qwen2_swa": Family(tf.Qwen2Config, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": Family(tf.Qwen3Config, {"head_dim": 32}, lacks=_NO_WINDOW),
    "mistral": Family(tf.MistralConfig, {"sliding_window": 8, "head_dim": 16}),
    "mistral_full": Family(tf.MistralConfig, {"sliding_window": None, "head_dim": 16}, lacks=_NO_WINDOW),
    "gemma2": Family(tf.Gemma2Config, {"head_dim": 32, "sliding_window": 8}),
    "gemma3": Family(tf.Gemma3TextConfig, {"num_hidden_layers": 4, "head_dim": 32, "sliding_window": 8}),
    "phi": Family(tf.PhiConfig, {"qk_layernorm": True}, lacks=_NO_WINDOW | {"head_dim"}),
    "phi3": Family(tf.Phi3Config, lacks=_NO_WINDOW),
    "gpt_neox": Family(tf.GPTNeoXConfig, lacks=_MULTI_HEAD),
    "opt": Family(tf.OPTConfig, lacks=_MULTI_HEAD),
    "gpt2": Family(tf.GPT2Config, lacks=_MULTI_HEAD),
    "mixtral": Family(tf.MixtralConfig, {**_EXPERTS, "num_local_experts": 4}, lacks=_NO_WINDOW, experts=True),
    "qwen3_moe": Family(
        tf.Qwen3MoeConfig,
        {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 48, "head_dim": 32},
        lacks=_NO_WINDOW | {"intermediate"},
        experts=True,
    ),
    "gpt_oss": Family(
        tf.GptOssConfig,
        {**_EXPERTS, "num_local_experts": 4, "head_dim": 16, "sliding_window": 8},
        experts=True,
    ),
    "deepseek_v2": Family(
        tf.DeepseekV2Config, {**_DEEPSEEK, "q_lora_rank": None}, lacks=_MULTI_HEAD, experts=True
    ),  # as V2-Lite
    "deepseek_v3": Family(
        tf.DeepseekV3Config,
        {**_DEEPSEEK, "q_lora_rank": 20, "n_group": 2, "topk_group": 1},
        lacks=_MULTI_HEAD,
        experts=True,
    ),
    "minicpm3": Family(tf.MiniCPM3Config, {**_LATENT, "q_lora_rank": 20}, lacks=_MULTI_HEAD),
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
    _check(family, overrides)
    return family, overrides


def build(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: int) -> PreTrainedModel:
    """A random model of ``family``, in evaluation mode on the CPU; generation never stops early.

    Args:
        family: a key of ``FAMILIES``.
        dtype: of the weights; drawn in fp32 and then cast.
        seed: fixes the weights; the global random state is left alone.
        overrides: keys of ``GEOMETRY``, in its units (counts, tokens).
    """
    _check(family, overrides)
    options = {"experts_implementation": "eager"} if FAMILIES[family].experts else {}  # the grouped one rejects fp64
    with torch.random.fork_rng(devices=[]):  # what the constructor draws is replaced
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            _config(family, overrides), dtype=torch.float32, **options
        )
    fill(model, seed)
    model.generation_config.eos_token_id = None
    return cast(model.eval(), dtype)


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Cast the parameters in place, and only them: rotary frequencies stay fp32, as ``from_pretrained`` leaves them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, ids 3 to 258, after ``<pad>``, ``<bos>`` and ``<eos>``: enough for any text and prompt."""
    pieces = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=pad, bos_token=bos, eos_token=eos)


def _check(family: str, overrides: Mapping[str, int]) -> None:
    if family not in FAMILIES:
        raise unknown("random model family", family, FAMILIES)
    allowed = {*FAMILIES[family].keys, "seed"}
    for key in overrides:
        if key not in allowed:
            raise unknown(f"geometry key of random:{family}", key, allowed)
    if overrides.get("vocab", BASE["vocab_size"]) < BASE["vocab_size"]:
        raise KvbenchError(f"random:{family}: vocab must be at least {BASE['vocab_size']}, one id a byte and 3 more")


def _config(family: str, overrides: Mapping[str, int]) -> PreTrainedConfig:
    chosen = FAMILIES[family]
    values = BASE | dict(chosen.extra) | {chosen.keys[key]: value for key, value in overrides.items()}
    if "head_dim" not in values and values["hidden_size"] % values["num_attention_heads"]:
        raise KvbenchError(f"random:{family}: hidden must be a multiple of heads unless head_dim is given")
    if "kv_heads" not in chosen.lacks and values["num_attention_heads"] % values["num_key_value_heads"]:
        raise KvbenchError(f"random:{family}: heads must be a multiple of kv_heads")
    if family == "gemma3":  # alternate from the start, so that a tiny model has both kinds of layers
        kinds = ("sliding_attention", "full_attention")
        values["layer_types"] = [kinds[layer % 2] for layer in range(values["num_hidden_layers"])]
    if "kv_lora_rank" in values:
        values["num_key_value_heads"] = values["num_attention_heads"]
    if family == "deepseek_v3":  # as published: a context that YaRN has stretched
        values["rope_parameters"] = _yarn(values["max_position_embeddings"])
    if family == "opt":
        values |= {"word_embed_proj_dim": values["hidden_size"], "ffn_dim": values["intermediate_size"]}
    if family == "gpt2":
        values["n_inner"] = values["intermediate_size"]
    return chosen.config(**values)


def _yarn(context: int, factor: int = 4) -> dict[str, Any]:
    """RoPE for ``context`` tokens of which one in ``factor`` were trained, as DeepSeek-V3 sets it."""
    return {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": float(factor),
        "original_max_position_embeddings": context // factor,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }
