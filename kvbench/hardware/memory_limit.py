"""A limit on the memory of this process: what does not fit fails here, and nothing else on the machine suffers.

On a CPU the system counts what a process may write to and shares with nobody (``RLIMIT_DATA``): heap, tensors, stacks
of threads; not code, nor files that are only read. What it refuses comes back as torch's, numpy's and Python's own
errors. On a GPU torch's allocator keeps to the limit; what the driver holds is not in it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from kvbench.errors import KvbenchError
from kvbench.hardware.process_memory import status_bytes

MIB = 2**20


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
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:  # what has run out of memory still has to write down that it did
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


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
