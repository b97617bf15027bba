"""Peak memory of a phase: of this process on a CPU, of torch's allocator on a GPU."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from kvbench.hardware.allocator import release_free_memory

SAMPLING_SECONDS = 0.01
"""Period of the fallback sampler. A peak shorter than this can be missed, which the method ``sampled`` says."""

RESET_SLACK_BYTES = 4 * 2**20
"""What resident memory is known to: kernels count pages per core and sum them lazily, so mark and size differ a little
even right after a reset."""


@dataclass(eq=False)  # two blocks may reach the same numbers and are still two
class Peak:
    """Peak memory of a phase, complete when its ``with`` block has ended.

    ``baseline_bytes`` is the level on entry and ``bytes`` the highest level since. ``method`` says how it was found:
    ``kernel`` (Linux's high-water mark, nothing missed), ``sampled`` (every 10 ms) or ``allocator`` (torch's CUDA
    allocator, nothing missed, without what the driver and other libraries hold).

    What was freed is given back to the system before the baseline is read, as far as the C library lets it: small
    pieces between others that live stay resident and are reused without a trace.
    """

    baseline_bytes: int
    method: Literal["kernel", "sampled", "allocator"]
    bytes: int

    @property
    def resolution_bytes(self) -> int:
        """Differences up to this are none: the kernel's counters lag behind, an allocator's do not."""
        return 0 if self.method == "allocator" else RESET_SLACK_BYTES

    def raise_to(self, level: int) -> None:
        """Note that ``level`` bytes were in use."""
        self.bytes = max(self.bytes, level)


_open: defaultdict[str, list[Peak]] = defaultdict(list)
"""Per high-water mark, the blocks that are being measured with it. A mark is one number for the whole process."""


def peak_memory(device: str) -> AbstractContextManager[Peak]:
    """Peak of what this process holds on ``device`` (``cpu``, ``cuda``, ``cuda:1``) during a ``with`` block."""
    return peak_cuda(device) if device.startswith("cuda") else peak_rss()


@contextmanager
def peak_rss() -> Iterator[Peak]:
    """Peak resident memory of this process during a ``with`` block. Blocks may nest.

    >>> with peak_rss() as peak:
    ...     block = b"x" * 50_000_000
    >>> peak.bytes - peak.baseline_bytes > 40_000_000
    True
    """
    _pass_on("rss", _high_water_mark())
    release_free_memory()
    kernel = _reset_high_water_mark()
    baseline = _resident()
    peak = Peak(baseline_bytes=baseline, method="kernel" if kernel else "sampled", bytes=baseline)
    with _read_mark("rss", peak, _high_water_mark) if kernel else _sample(peak):
        yield peak


@contextmanager
def peak_cuda(device: str) -> Iterator[Peak]:
    """Peak memory allocated by torch on a CUDA ``device`` during a ``with`` block. Blocks may nest."""
    import torch

    index = torch.device(device).index
    index = torch.cuda.current_device() if index is None else index  # "cuda" and "cuda:0" share a mark
    _pass_on(f"cuda:{index}", torch.cuda.max_memory_allocated(index))
    torch.cuda.reset_peak_memory_stats(index)
    baseline = torch.cuda.memory_allocated(index)
    peak = Peak(baseline_bytes=baseline, method="allocator", bytes=baseline)
    with _read_mark(f"cuda:{index}", peak, lambda: torch.cuda.max_memory_allocated(index)):
        yield peak


def _pass_on(name: str, mark: int) -> None:
    """Tell the enclosing blocks of a ``mark`` that is about to be reset, since they would never see it."""
    for peak in _open[name]:
        peak.raise_to(mark)


@contextmanager
def _read_mark(name: str, peak: Peak, read: Callable[[], int]) -> Iterator[None]:
    """Raise ``peak`` to the mark called ``name`` when the block ends."""
    _open[name].append(peak)
    try:
        yield
    finally:
        _open[name].remove(peak)
        peak.raise_to(read())


@contextmanager
def _sample(peak: Peak) -> Iterator[None]:
    """Raise ``peak`` to the resident size every 10 ms from a thread, and once more when the block ends."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLING_SECONDS):
            peak.raise_to(_resident())

    thread = threading.Thread(target=watch, name="kvbench-peak-rss", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        peak.raise_to(_resident())


def _resident() -> int:
    return psutil.Process().memory_info().rss


def _high_water_mark() -> int:
    """Linux's highest resident size of this process since the last reset, in bytes; 0 on other systems."""
    return status_bytes("VmHWM")


def status_bytes(name: str) -> int:
    """What Linux says of this process by ``name`` (see proc_pid_status(5)), in bytes; 0 on other systems."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _reset_high_water_mark() -> bool:
    """Lower the mark to the present size; False where that is forbidden, unknown or silently ignored (sandboxes)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # see proc_pid_clear_refs(5)
    except OSError:
        return False
    return 0 < _high_water_mark() <= _resident() + RESET_SLACK_BYTES
