"""Where compiled CPU kernels are kept: a folder for every version of their source.

numba by itself keeps them beside the source and looks at one file's time: kernels inline functions of other files, and
what was kept of an older version may name classes that are gone.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from kvbench.storage.folders import cache_dir


@contextmanager
def kernel_cache(source: Path, variant: str = "") -> Iterator[None]:
    """Let numba keep what is declared meanwhile in kvbench's cache folder, by the content of ``source`` (file, folder).

    ``variant``: what else kernels are compiled for that numba does not know of. Where the cache folder cannot be
    written, kernels are compiled anew in every process.
    """
    with _kept_in(cache_folder(source, variant)):
        yield


@contextmanager
def _kept_in(folder: Path) -> Iterator[None]:
    from numba import config

    settings: Any = config
    before = settings.CACHE_DIR
    settings.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        settings.CACHE_DIR = before


def cache_folder(source: Path, variant: str = "") -> Path:
    """Where to keep what is compiled from ``source``; a temporary folder if that cannot be written."""
    files = [source] if source.is_file() else sorted(source.rglob("*.py"))
    version = sha256(variant.encode() + b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
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


def kernels_of(source: str) -> Callable[..., Callable[[Callable[..., Any]], Any]]:
    """``numba.njit`` for functions of the file ``source``, which call no kernels of other files.

    What it returns takes njit's options and decorates. The file is read, and its folder tried, once for all of them.
    """
    from numba import njit

    folder = cache_folder(Path(source))

    def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
        def compiled(function: Callable[..., Any]) -> Any:
            with _kept_in(folder):
                return njit(cache=True, **options)(function)

        return compiled

    return kernel
