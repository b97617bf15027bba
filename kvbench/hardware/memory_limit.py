"""A limit on the memory of this process: what does not fit fails here, and nothing else on the machine suffers.

On a CPU the system counts what a process may write to and shares with nobody (``RLIMIT_DATA``): heap, tensors, stacks
of threads; not code, nor files that are only read. What it refuses comes back as torch's, numpy's and Python's own
errors. On a GPU torch's allocator keeps to the limit; what the driver holds is not in it.

glibc keeps freed memory for later, more or less of it from run to run: tens of megabytes decided by chance what fitted.
Under a limit it gives blocks of :data:`AT_ONCE` and more back as they are freed, so that what is in use counts.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from kvbench.errors import KvbenchError
from kvbench.hardware.process_memory import status_bytes

MIB = 2**20

AT_ONCE = 256 * 1024
"""Bytes of a block that is mapped by itself and given back once it is freed."""

_M_MMAP_THRESHOLD, _LATE = -3, 32 * MIB
"""glibc's number for that setting, and the most that it raises the setting to by itself."""


def require_memory_limits(device: str) -> None:
    """Refuse a device (``cpu``, ``cuda``, ``cuda:1``) whose memory nobody limits.

    Raises:
        KvbenchError: it is a processor, and the system is not Linux.
    """
    if not device.startswith("cuda") and sys.platform != "linux":
        raise KvbenchError("memory can be limited on Linux and on GPUs only; leave --memory-limit out")


def limited_memory(device: str, limit: int) -> AbstractContextManager[None]:
    """In a ``with`` block this process, and on a CPU those that it starts, take at most ``limit`` bytes on ``device``.

    Raises:
        MemoryError: on entry, the process takes more already.
        KvbenchError: as :func:`require_memory_limits`.
    """
    require_memory_limits(device)
    return _limited_gpu(device, limit) if device.startswith("cuda") else _limited_process(limit)


@contextmanager
def _limited_process(limit: int) -> Iterator[None]:
    import resource  # not on Windows

    if (taken := private_bytes()) > limit:
        raise MemoryError(
            f"the process takes {taken / MIB:,.0f} MiB before it has loaded a model, and may take {limit / MIB:,.0f}"
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    _give_back_from(AT_ONCE)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:  # what has run out of memory still has to write down that it did
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        _give_back_from(_LATE)


def _give_back_from(size: int) -> None:
    """Blocks of ``size`` bytes go back to the system once they are freed; nothing where malloc is not glibc's."""
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size)


@contextmanager
def _limited_gpu(device: str, limit: int) -> Iterator[None]:
    import torch

    index = torch.device(device).index
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0), index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)


def private_bytes() -> int:
    """Bytes of this process that ``RLIMIT_DATA`` counts; 0 where the system does not tell."""
    return status_bytes("VmData")
