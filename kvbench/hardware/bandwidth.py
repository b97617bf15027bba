"""Memory bandwidth that this machine's cores reach: the ceiling of decode attention, which mostly reads the cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

MEBIBYTE = 2**20
ARRAY_BYTES = 256 * MEBIBYTE
"""Size of each array: several times the last-level cache of common machines, so that passes come from memory."""

REPEATS = 7
"""Timed passes after one warm-up pass; their median is reported."""


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second of reading and of copying, with one thread and with ``threads`` of them.

    Reading counts the bytes that a sum reads. Copying counts bytes read plus bytes written, as STREAM does; a cache
    line that the processor fetches only to overwrite it is traffic on top of that and not counted.
    """

    read_single: float
    read: float
    copy_single: float
    copy: float
    threads: int


def measure_bandwidth(array_bytes: int = ARRAY_BYTES, repeats: int = REPEATS) -> Bandwidth:
    """Measure the bandwidth of main memory, with one thread and with as many as torch now uses. Takes about 1 s.

    Allocates two arrays of ``array_bytes``; arrays that fit the last-level cache measure the cache instead.
    """
    source = torch.ones(array_bytes // 4, dtype=torch.float32)
    target = torch.ones_like(source)  # written once, so that no page is first touched inside a timed pass
    threads = torch.get_num_threads()

    def read() -> object:
        return source.sum()

    def copy() -> object:
        return target.copy_(source)

    with _threads(1):
        read_single = array_bytes / _median_seconds(read, repeats)
        copy_single = 2 * array_bytes / _median_seconds(copy, repeats)
    return Bandwidth(
        read_single=read_single,
        read=array_bytes / _median_seconds(read, repeats),
        copy_single=copy_single,
        copy=2 * array_bytes / _median_seconds(copy, repeats),
        threads=threads,
    )


def _median_seconds(work: Callable[[], object], repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads inside the block, and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
