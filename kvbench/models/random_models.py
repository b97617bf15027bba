"""``random:<family>``: seeded tiny models of every supported family, for tests, conformance and speed-only runs.

Biases and norms get noise, so that nothing a compressor might forget is zero or one. The same seed gives the same
weights in every dtype and on every machine. Any geometry can be requested, such as SmolLM2's with fewer layers:
``random:llama?layers=4,hidden=576,heads=9,kv_heads=3,head_dim=64``, or the attention of DeepSeek-V2-Lite:
``random:deepseek_v2?heads=16,latent=512,rope=64,nope=128,value=128``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from kvbench.models.random_families import FAMILIES, SPECIAL_TOKENS, check
from kvbench.models.random_weights import fill


def build(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: int) -> PreTrainedModel:
    """A random model of ``family``, in evaluation mode on the CPU; generation never stops early.

    Args:
        family: a key of :data:`kvbench.models.random_families.FAMILIES`.
        dtype: of the weights; drawn in fp32 and then cast.
        seed: fixes the weights; the global random state is left alone.
        overrides: keys of its geometry, in its units (counts, tokens).
    """
    check(family, overrides)
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


def _config(family: str, overrides: Mapping[str, int]) -> PreTrainedConfig:
    chosen = FAMILIES[family]
    values = chosen.values(overrides)
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
    config: PreTrainedConfig = getattr(tf, chosen.config)(**values)
    return config


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
