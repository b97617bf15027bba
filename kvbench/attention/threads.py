"""Sharing a kernel's work between as many threads as torch uses, with no second pool spinning beside torch's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="kvbench-attention")


SMALL = 2**17
"""Bytes that one thread reads sooner than another would wake."""


def share(work: Callable[[int, int], None], units: int, size: int) -> None:
    """Run ``work(first, last)`` over [0, units) in contiguous parts, one of them here; all if they read few bytes.

    For work that frees the GIL.
    """
    threads = min(torch.get_num_threads(), units) if size > SMALL else 1
    if threads <= 1:
        work(0, units)
        return
    bounds = [units * part // threads for part in range(threads + 1)]
    pool = _pool(torch.get_num_threads() - 1)
    others = [pool.submit(work, *bounds[part : part + 2]) for part in range(1, threads)]
    work(*bounds[:2])
    for other in others:
        other.result()
