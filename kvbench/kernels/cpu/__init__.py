"""Decode kernels for the CPU, compiled by numba.

They are all imported here, whichever of them is imported first, so that what numba keeps on disk always belongs to the
source of all of them together.
"""

from __future__ import annotations

from pathlib import Path

from kvbench.kernels.cpu.llvm.matrix_ops import has_matrices
from kvbench.storage.kernel_cache import kernel_cache

VARIANT = "by matrices" if has_matrices() else ""

with kernel_cache(Path(__file__).parent, VARIANT):
    from kvbench.kernels.cpu import coded, exact, rebuilt, step

__all__ = ["coded", "exact", "rebuilt", "step"]
