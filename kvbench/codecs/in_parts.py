"""Numba kernels over many rows, by as many threads as torch uses."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from kvbench.hardware.torch_threads import parallel_region

ENOUGH = 1 << 17
"""Numbers that pay for one more thread: some tenths of a millisecond's work."""

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def in_parts(kernel: Callable[..., None], rows: tuple[Any, ...], *shared: Any) -> None:
    """Call ``kernel(*rows, *shared)``, or for parts of the first axis of all ``rows`` at the same time.

    ``kernel`` lets go of the interpreter's lock, and treats every row by itself.
    """
    count, numbers = len(rows[0]), max(array.size for array in rows)
    threads, parallel = max(1, min(torch.get_num_threads(), numbers // ENOUGH, count)), parallel_region()
    if threads == 1 or parallel is None:
        kernel(*rows, *shared)
        return
    cuts = [count * part // threads for part in range(threads + 1)]
    parts = iter([[array[start:stop] for array in rows] for start, stop in pairwise(cuts)])

    def work(_: object) -> None:
        for part in parts:  # all threads take from the same iterator
            kernel(*part, *shared)

    function = _FUNCTION(work)
    parallel(ctypes.cast(function, ctypes.c_void_p).value, None, threads, 0)
