"""The C library's allocator, told to give memory back, so that resident memory is what lives and nothing else.

glibc keeps what is freed: in its heaps, and through a threshold that rises with every large block that is freed, so
that a process' past decides what it takes from the system next.
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


def release_free_memory() -> None:
    """Give what has been freed back to the system; does nothing where the C library is not glibc."""
    gc.collect()
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


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
