"""A cache folder of a test's own, but for the compiled kernels, which take a minute."""

from __future__ import annotations

from pathlib import Path

from kvbench.storage.folders import cache_dir

KERNELS = cache_dir() / "kernels"
"""Of the whole session: read before any test moves the cache."""


def cache_with_kernels(folder: Path) -> str:
    """``folder``, made, for ``KVBENCH_CACHE``."""
    KERNELS.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernels").symlink_to(KERNELS)
    return str(folder)
