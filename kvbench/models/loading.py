"""One way to a model in memory, whatever its source: found, fetched, converted, checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbench.errors import KvbenchError
from kvbench.models import random_families, random_models
from kvbench.models.conversion import check_probe, converted_folder
from kvbench.models.hub import snapshot_folder
from kvbench.models.registry import ModelEntry, Source, find
from kvbench.models.saved import read_folder, weights_sha256


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

    Parameters require no gradients (kvbench never trains); ``fetch=False`` forbids downloads.

    Raises:
        KvbenchError: unknown model or device, broken or incomplete files, weights that are not finite.
        FetchError: the model cannot be fetched, verified or stored.
    """
    entry = find(name)
    _check_device(device)
    model, tokenizer, sha256 = _SOURCES[entry.source](entry, dtype, fetch)
    _check_finite(model, name)
    _check_vocabulary(model, tokenizer, name)
    model.requires_grad_(False).eval().to(device)
    configured = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # absent with ALiBi
    context_length = int(entry.context_length or configured or tokenizer.model_max_length)
    return LoadedModel(name, model, tokenizer, sha256, context_length)


Parts = tuple[PreTrainedModel, PreTrainedTokenizerBase, str]


def _load_wheel(entry: ModelEntry, dtype: torch.dtype, fetch: bool) -> Parts:
    folder = converted_folder(entry, fetch)
    model, tokenizer = read_folder(folder, dtype)
    check_probe(folder, tokenizer)
    return model, tokenizer, entry.gguf_sha256


def _load_folder(entry: ModelEntry, dtype: torch.dtype, fetch: bool) -> Parts:
    folder = entry.path or snapshot_folder(entry, fetch)
    model, tokenizer = read_folder(folder, dtype)
    return model, tokenizer, weights_sha256(folder)


def _load_random(entry: ModelEntry, dtype: torch.dtype, fetch: bool) -> Parts:
    family, overrides = random_families.parse(entry.name)
    model = random_models.build(family, torch.float32, **overrides)
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy())
    return random_models.cast(model, dtype), random_models.byte_tokenizer(), digest.hexdigest()


_SOURCES: dict[Source, Callable[[ModelEntry, torch.dtype, bool], Parts]] = {
    "wheel": _load_wheel,
    "hub": _load_folder,
    "folder": _load_folder,
    "random": _load_random,
}


def _check_device(device: str) -> None:
    if device == "meta" or re.fullmatch("cpu:.*", device):
        raise KvbenchError(f"device {device!r} cannot be used: write cpu, cuda or cuda:1")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without the device
        reason = str(error).splitlines()[0]
        raise KvbenchError(f"device {device!r} cannot be used: {reason}") from error


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    rows = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    if tokenizer.vocab_size > rows:  # tokens that were added later often have no row, and never occur in texts
        raise KvbenchError(
            f"{name}: its tokenizer has {tokenizer.vocab_size} tokens, the model embeds {rows}; they do not belong "
            "together"
        )


def _check_finite(model: PreTrainedModel, name: str) -> None:
    for key, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.stack(parameter.aminmax()).isfinite().all():
            raise KvbenchError(f"{name}: tensor {key} holds NaN or infinite values; the weights are broken")
