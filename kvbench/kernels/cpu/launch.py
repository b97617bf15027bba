"""Sharing a kernel's units of work between the threads that torch computes with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch

from kvbench.hardware.torch_threads import parallel_region

SMALL = 2**20
"""Bytes that one thread works through sooner than another would have begun."""


def share(function: Any, address: int, units: int, size: int) -> None:
    """Run ``function``, a C function of a job's address, on as many threads as pay for ``units`` of ``size`` bytes."""
    threads = min(torch.get_num_threads(), units) if size > SMALL else 1
    if threads == 1:
        function.ctypes(address)
    elif (parallel := parallel_region()) is not None:
        parallel(function.address, address, threads, 0)
    else:
        others = [_pool(torch.get_num_threads() - 1).submit(function.ctypes, address) for _ in range(threads - 1)]
        function.ctypes(address)
        for other in others:
            other.result()


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="kvbench-attention")
