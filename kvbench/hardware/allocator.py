"""The C library's allocator, told what to do with freed memory: give it back for peaks, keep it for times.

By itself glibc keeps some: in its heaps, and through a threshold that rises with every large block that is freed, so
that a process' past decides what it takes from the system next, and how long that takes.
"""

from __future__ import annotations

import ctypes
import gc
import sys

STEADY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(64 * 1024),
    "MALLOC_MMAP_MAX_": str(2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 1024),
    "MALLOC_TOP_PAD_": "0",
}
"""glibc's environment (mallopt(3)) for a process whose peaks are measured: blocks of 64 KiB and more are mapped when
they are taken and unmapped when they are freed. Slower, so not for a process that is timed."""

_PR_SET_THP_DISABLE = 41  # prctl(2)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3)


def release_free_memory() -> None:
    """Give what has been freed back to the system; does nothing where the C library is not glibc."""
    gc.collect()
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_freed_memory() -> None:
    """Let this process reuse what it frees, blocks of any size, from now on.

    A stock cache takes new memory for all its keys and values in every step. Mapped anew each time, every page of it is
    zeroed by the system first, which takes longer than the copy; whether it is depends on what ran before. Does nothing
    where the C library is not glibc.
    """
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def refuse_huge_pages() -> None:
    """Count this process' memory in small pages: of a huge one, 2 MiB become resident with the first byte."""
    if sys.platform == "linux":
        prctl = getattr(_libc(), "prctl", None)
        if prctl is not None:
            prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)


def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no such handle
        return None
