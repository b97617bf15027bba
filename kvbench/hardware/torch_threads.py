"""The threads that torch computes with, for work that is not torch's.

A second pool beside torch's would compete with it: torch's threads spin for a while after every operation, and waking
sleeping ones takes longer than a layer's attention. So work runs as a parallel region of torch's own OpenMP library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch


@lru_cache(maxsize=1)
def parallel_region() -> Callable[[int | None, int | None, int, int], None] | None:
    """``GOMP_parallel(function, data, threads, flags)`` of the library that torch has loaded; None without one.

    ``function`` is the address of a C function of ``data``, which so many threads call.
    """
    for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*")):
        try:
            function = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None
