"""One way to a model in memory, whatever its source: found, fetched, converted, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from kvbench.errors import KvbenchError
from kvbench.models import random_models
from kvbench.models.conversion import check_probe, converted_folder
from kvbench.models.fetching import file_sha256
from kvbench.models.registry import ModelEntry, find


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, its tokenizer, and what its weights are."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weights_sha256: str
    """Of the GGUF file, of the folder's safetensors files, or of a random model's fp32 tensors."""
    context_length: int
    """Tokens."""


def load(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu", fetch: bool = True) -> LoadedModel:
    """Load a model by registry name, listed hub id, ``random:<family>`` or folder path.

    Parameters ask for no gradients (kvbench never trains); ``fetch=False`` forbids downloads.

    Raises:
        KvbenchError: unknown model, broken or incomplete files, weights that are not finite.
        FetchError: the model cannot be fetched, verified or stored.
    """
    entry = find(name)
    model, tokenizer, sha256 = _SOURCES[entry.source](entry, dtype, fetch)
    _check_finite(model, name)
    model.requires_grad_(False).eval().to(device)
    context = entry.context_length or int(model.config.max_position_embeddings)
    return LoadedModel(name, model, tokenizer, sha256, context)


Parts = tuple[PreTrainedModel, PreTrainedTokenizerBase, str]


def _load_wheel(entry: ModelEntry, dtype: torch.dtype, fetch: bool) -> Parts:
    folder = converted_folder(entry, fetch)
    model, tokenizer = read_folder(folder, dtype)
    check_probe(entry, tokenizer, folder)
    return model, tokenizer, entry.gguf_sha256


def _load_folder(entry: ModelEntry, dtype: torch.dtype, fetch: bool) -> Parts:
    assert entry.path is not None
    model, tokenizer = read_folder(entry.path, dtype)
    return model, tokenizer, weights_sha256(entry.path)


def _load_random(entry: ModelEntry, dtype: torch.dtype, fetch: bool) -> Parts:
    family, overrides = random_models.parse(entry.name)
    model = random_models.build(family, torch.float32, **overrides)
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    model = random_models.build(family, dtype, **overrides) if dtype != torch.float32 else model
    return model, random_models.byte_tokenizer(), digest.hexdigest()


_SOURCES: dict[str, Callable[[ModelEntry, torch.dtype, bool], Parts]] = {
    "wheel": _load_wheel,
    "folder": _load_folder,
    "random": _load_random,
}


def read_folder(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a ``save_pretrained`` folder; refuses one that does not hold every weight."""
    model: PreTrainedModel
    info: dict[str, set[str]]
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True}
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise KvbenchError(f"{folder} holds no weights for {sorted(info['missing_keys'])[:3]}")
    return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def weights_sha256(folder: Path) -> str:
    """Digest over the names and contents of a folder's safetensors files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _check_finite(model: PreTrainedModel, name: str) -> None:
    for key, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.stack(parameter.aminmax()).isfinite().all():
            raise KvbenchError(f"{name}: tensor {key} holds NaN or infinite values; the weights are broken")
