"""Models in the format of ``save_pretrained``: what local folders, hub snapshots and converted GGUFs have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from kvbench.errors import KvbenchError
from kvbench.storage.digests import file_sha256


def read_folder(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (on the CPU) and tokenizer of a ``save_pretrained`` folder.

    Raises:
        KvbenchError: a file is missing, corrupt or truncated, or a weight is missing. Pickled weights are not read.
    """
    if (folder / "adapter_config.json").is_file():
        raise KvbenchError(
            f"folder {folder} holds an adapter; merge it into its base model, save that, and give its folder"
        )
    if not list(folder.glob("*.safetensors")):
        raise KvbenchError(f"folder {folder} holds no .safetensors weights (pickled weights are never read)")
    with _readable(folder, "model"), _quiet():
        model, info = _from_pretrained(folder, dtype)
    if info["missing_keys"]:
        raise KvbenchError(f"folder {folder} holds no weights for {sorted(info['missing_keys'])[:3]}")
    with _readable(folder, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return model, tokenizer


def write_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The inverse of :func:`read_folder`.

    Raises:
        KvbenchError: the weights cannot be written.
    """
    try:
        with _quiet():
            model.save_pretrained(folder)
    except SafetensorError as error:  # a full disk comes as this, without an errno
        raise KvbenchError(f"cannot write the model to folder {folder}: {error}") from error
    tokenizer.save_pretrained(folder)


def weights_sha256(folder: Path) -> str:
    """Digest over the names and contents of a folder's safetensors files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _from_pretrained(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, set[str]]]:
    options: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
    pair: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    model, info = pair
    return model, info


@contextmanager
def _readable(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a config may hold anything, and what transformers makes of it raises anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KvbenchError(f"cannot read the {what} in folder {folder}: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own progress bar, which takes longer to draw than a small model to load or save."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
