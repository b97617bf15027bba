"""Sharing a kernel's units of work between the threads that torch computes with.

A second pool beside torch's would compete with it: torch's threads spin for a while after every operation, and waking
sleeping ones takes longer than a layer's attention. So a job runs as a parallel region of torch's own OpenMP library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

SMALL = 2**20
"""Bytes that one thread works through sooner than another would have begun."""


def share(function: Any, address: int, units: int, size: int) -> None:
    """Run ``function``, a C function of a job's address, on as many threads as pay for ``units`` of ``size`` bytes."""
    threads = min(torch.get_num_threads(), units) if size > SMALL else 1
    if threads == 1:
        function.ctypes(address)
    elif (parallel := _parallel()) is not None:
        parallel(function.address, address, threads, 0)
    else:
        others = [_pool(torch.get_num_threads() - 1).submit(function.ctypes, address) for _ in range(threads - 1)]
        function.ctypes(address)
        for other in others:
            other.result()


@lru_cache(maxsize=1)
def _parallel() -> Callable[[int, int, int, int], None] | None:
    """``GOMP_parallel(function, data, threads, flags)`` of the library that torch has loaded; None without one."""
    for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*")):
        try:
            function = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="kvbench-attention")
