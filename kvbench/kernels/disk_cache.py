"""Where compiled CPU kernels are kept: a folder for every version of their source.

numba watches one file at a time, and kernels inline functions of others.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from kvbench.storage.folders import cache_dir


@contextmanager
def kernel_cache(source: Path) -> Iterator[None]:
    """Let numba keep what is declared meanwhile in kvbench's cache folder, by the content of the folder ``source``.

    Where the cache folder cannot be written, kernels are compiled anew in every process.
    """
    from numba import config

    settings: Any = config
    before = settings.CACHE_DIR
    settings.CACHE_DIR = str(cache_folder(source))
    try:
        yield
    finally:
        settings.CACHE_DIR = before


def cache_folder(source: Path) -> Path:
    """Where to keep what is compiled from the files in ``source``; a temporary folder if that cannot be written."""
    files = sorted(source.rglob("*.py"))
    version = sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    folder = cache_dir() / "kernels" / version
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return folder
    except OSError as error:
        warnings.warn(f"{folder} cannot be written ({error}): kernels are compiled in every process", stacklevel=2)
    passing = tempfile.mkdtemp(prefix="kvbench-kernels-")
    atexit.register(shutil.rmtree, passing, ignore_errors=True)
    return Path(passing)
