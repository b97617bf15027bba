"""A limit on this process' memory: what does not fit fails, and what comes afterwards does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from kvbench.errors import KvbenchError
from kvbench.hardware.memory_limit import limited_memory, private_bytes
from kvbench.runs.endings import status_of

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody limits what a process maps")
ROOM = 64 << 20
BEYOND = 64 << 30
"""More than tests before may have left free in this process, which the limit does not take away."""


@on_linux
@pytest.mark.parametrize(
    "allocate",
    [lambda size: torch.empty(size, dtype=torch.uint8), lambda size: np.empty(size, np.uint8), bytearray],
    ids=["torch", "numpy", "python"],
)
def test_what_does_not_fit_fails_for_memory_and_only_within_the_limit(allocate: Callable[[int], object]):
    with limited_memory("cpu", private_bytes() + ROOM):
        allocate(ROOM // 4)
        with pytest.raises((MemoryError, RuntimeError)) as refused:
            allocate(BEYOND)
    assert status_of(refused.value) == "oom"
    allocate(4 * ROOM)


FREES = f"""
import torch
from kvbench.hardware.memory_limit import limited_memory, private_bytes

torch.set_num_threads(1)  # threads that start in between would take stacks of megabytes
with limited_memory("cpu", private_bytes() + {8 * ROOM}):
    before, kept = private_bytes(), []
    for size in {ROOM // 2, ROOM // 4, ROOM // 8}:
        block = torch.ones(size, dtype=torch.uint8)
        kept.append(torch.ones(1000, dtype=torch.uint8))
        del block
    print(private_bytes() - before)
"""


@on_linux
def test_what_is_freed_under_a_limit_takes_no_more_of_it():
    """glibc kept tens of megabytes, other ones in every run: which trials of a sweep fitted was decided by that."""
    done = subprocess.run([sys.executable, "-c", FREES], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < ROOM // 16


@on_linux
def test_less_than_the_process_has_already_is_no_room_at_all():
    with pytest.raises(MemoryError, match=r"takes .* MiB before it has loaded a model, and may take 1$"):
        limited_memory("cpu", 1 << 20).__enter__()


def test_systems_without_limits_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(KvbenchError, match="memory can be limited on Linux and on GPUs only; leave --memory-limit out"):
        limited_memory("cpu", 1 << 40)
