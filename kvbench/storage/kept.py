"""Tensors that took long to compute, kept in the cache folder under a hash of everything that they depend on.

Every entry is a file that is whole or absent. Those used longest ago make room when all of them together exceed
:data:`BUDGET` bytes. Nothing is ever served under another key, so a lost or damaged entry only costs time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvbench.errors import FetchError, KvbenchError
from kvbench.storage.folders import build_folder, cache_dir, check_folder

BUDGET = 12 << 30
"""Bytes of all entries together; ``KVBENCH_KEPT_GIB`` changes it, 0 keeps nothing. The prompts of a suite of tasks take
5 GiB and are read once for every compressor: with less room for them each would be made anew every time."""
FOLDER = "baselines"
_FILE = "tensors.safetensors"

Contents = tuple[dict[str, Tensor], dict[str, str]]
"""Named tensors, and short texts about them."""


def kept(key: Sequence[object], make: Callable[[], Contents]) -> Contents:
    """What ``make()`` returns, read from disk if it was made before under this ``key`` of plain JSON values.

    Also what was made just now is read back, so that this run and the next compute with tensors that lie alike in
    memory (matrix products of tensors aligned otherwise differ in the last digit). A folder that is full or cannot be
    written is no error: the tensors are then made anew next time.
    """
    folder = cache_dir() / FOLDER / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    if (contents := _read(folder)) is not None:
        os.utime(folder)  # used now
        return contents
    tensors, texts = make()
    size = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    if 0 < budget() >= size:
        with contextlib.suppress(FetchError):
            build_folder(folder, lambda partial: save_file(tensors, partial / _FILE, texts))
            _make_room(folder.parent, folder)
            return _read(folder) or (tensors, texts)
    return tensors, texts


def budget() -> int:
    """Bytes that all entries together may take. Raises KvbenchError where ``KVBENCH_KEPT_GIB`` is no size."""
    given = os.environ.get("KVBENCH_KEPT_GIB")
    if given is None:
        return BUDGET
    try:
        return int(float(given) * 2**30)
    except (ValueError, OverflowError) as error:
        raise KvbenchError(f"KVBENCH_KEPT_GIB={given!r} is no number of GiB; write 12, or 0 to keep nothing") from error


def _read(folder: Path) -> Contents | None:
    """The contents of an entry; None if there is none or it cannot be read, and then it is removed."""
    if not folder.is_dir():
        return None
    try:
        check_folder(folder)
        with safe_open(folder / _FILE, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError, KvbenchError):
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _make_room(parent: Path, newest: Path) -> None:
    """Remove the entries used longest ago until the rest fits; the newest always stays."""
    with contextlib.suppress(OSError):  # another process may be removing the same ones
        entries = sorted((path for path in parent.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in entries}
        for path in entries:
            if sum(sizes.values()) <= budget():
                break
            if path != newest and path.suffix != ".partial":
                shutil.rmtree(path, ignore_errors=True)
                del sizes[path]
