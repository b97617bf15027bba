"""What this machine can do at most: bytes read and operations done in a second. Measured once per process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import torch

from kvbench.hardware.bandwidth import ARRAY_BYTES

SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices multiplied: large enough that arithmetic and not memory is the limit."""

REPEATS = 7
"""Timed passes after one that warms up; the median of the faster half counts."""


@dataclass(frozen=True)
class Peaks:
    """Bytes per second that a large sum reads, and operations per second of a large matrix product (2·n³ for n)."""

    read: float
    operations: float


def peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """The peaks of ``device`` for numbers of ``dtype``, with as many threads as torch uses. Takes about 1 s once."""
    return _measured(device, dtype, torch.get_num_threads())


@lru_cache(maxsize=16)
def _measured(device: torch.device, dtype: torch.dtype, threads: int) -> Peaks:
    side = SIDE["cpu" if device.type == "cpu" else "cuda"]
    array = torch.ones(ARRAY_BYTES // 4, dtype=torch.float32, device=device)
    read = ARRAY_BYTES / _fastest(array.sum, device)
    del array
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(left)
    return Peaks(read, 2 * side**3 / _fastest(lambda: torch.mm(left, right, out=out), device))


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of a pass that nothing disturbed."""
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return median(sorted(seconds[1:])[: (REPEATS + 1) // 2])
