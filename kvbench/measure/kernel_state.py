"""Which decode kernels run on which device of this machine, and how long they took to get ready."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import torch

from kvbench.kernels.choice import kernels_for, missing, warm_up


@dataclass(frozen=True)
class KernelState:
    """The kernels of one device: ``implementation``, or why there is none.

    ``cached`` says that they came from the disk instead of a compiler (None: not known), ``ready_s`` is the time until
    they could run, near zero in a process that has them already.
    """

    device: str
    implementation: str | None
    missing: str | None
    cached: bool | None
    ready_s: float

    def __str__(self) -> str:
        if self.implementation is None:
            return f"none ({self.missing}), plain torch attends"
        how = {True: "loaded from the disk cache", False: "compiled, and kept on disk", None: "ready"}[self.cached]
        return f"{self.implementation}, {how} in {self.ready_s:.1f} s"


def kernel_states() -> tuple[KernelState, ...]:
    """Get the kernels of every device ready. Seconds from the disk cache; half a minute to compile them."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return tuple(_state(device) for device in devices)


def _state(device: str) -> KernelState:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is missing is told in the result
        warm_up(torch.device(device))
        kernels = kernels_for(torch.device(device))
        reason = missing(device)
    taken = time.perf_counter() - start
    cached = _from_disk() if kernels is not None and device == "cpu" else None
    return KernelState(device, kernels.title if kernels else None, reason, cached, taken)


def _from_disk() -> bool:
    """Whether numba loaded all kernels from its cache."""
    from kvbench.kernels.cpu.jobs import step_job

    return bool(step_job.cache_hits)
