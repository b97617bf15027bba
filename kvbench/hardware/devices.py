"""Accelerators on paper: what ``devices.toml`` states of them, and this machine's processor as it was measured."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from kvbench.errors import KvbenchError, unknown

Precision = Literal["fp8", "bf16", "fp32"]
WIDTH: Mapping[Precision, int] = {"fp8": 1, "bf16": 2, "fp32": 4}
"""Bytes of a number."""

CPU = "cpu"


@dataclass(frozen=True)
class Measured:
    """What a machine at hand reaches by the rows of a step: bytes per second of weights that they are multiplied with,
    of matrices so wide (``weights(rows, width)``), and the seconds of a layer beside all that it reads and multiplies
    (``layer_s(rows)``: calls from Python, launches)."""

    weights: Callable[[int, int], float]
    layer_s: Callable[[int], float]


@dataclass(frozen=True)
class Accelerator:
    """One device at its peak: bytes, bytes per second and operations per second (2 for a multiply-add).

    ``link`` and ``network`` are one direction's bytes per second to the other devices of its node, of which there are
    ``node``, and to other nodes.
    """

    key: str
    name: str
    memory: float
    bandwidth: float
    operations: Mapping[Precision, float]
    link: float
    node: int
    network: float
    source: str
    measured: Measured | None = None
    """Of a machine at hand; on paper a device reads weights at its bandwidth, and calls cost nothing."""

    def peak(self, precision: Precision) -> float:
        """Operations per second in ``precision``, or where the device has no units for it in the next wider one."""
        wider = list(WIDTH)[list(WIDTH).index(precision) :]
        return next(self.operations[each] for each in wider if each in self.operations)

    def to_others(self, devices: int) -> float:
        """Bytes per second to the others of so many ``devices``: the network's where they do not fit one node."""
        return self.link if devices <= self.node else self.network


def accelerator_names() -> list[str]:
    """Names that :func:`accelerator` knows, and ``cpu``."""
    return [*_document(), CPU]


def accelerator(name: str) -> Accelerator:
    """The accelerator of ``devices.toml`` with this name.

    Raises:
        KvbenchError: there is none; the message says the nearest.
    """
    if name not in _document():
        raise unknown("device", name, accelerator_names())
    table = _document()[name]
    return Accelerator(
        name,
        table["name"],
        1e9 * table["memory"],
        1e9 * table["bandwidth"],
        {precision: 1e12 * rate for precision, rate in table["operations"].items()},
        1e9 * table["link"] / 2,  # one direction of both
        table["node"],
        1e9 * table["network"],
        table["source"],
    )


def processor(bandwidth: float | None, operations: float | None, memory: float | None) -> Accelerator:
    """This machine's processor, in bytes per second, operations per second and bytes; None is measured now.

    It computes in fp32, or at the same rate in narrower numbers, and has no others to talk to.

    Raises:
        KvbenchError: a rate or size is not positive.
    """
    if any(given is not None and not 0 < given < math.inf for given in (bandwidth, operations, memory)):
        raise KvbenchError("the processor's bandwidth, operations and memory must be above 0 and finite")
    if bandwidth is None or operations is None:
        import torch

        from kvbench.hardware.peaks import peaks

        measured = peaks(torch.device("cpu"), torch.float32)
        bandwidth, operations = bandwidth or measured.read, operations or measured.operations
    if memory is None:
        from kvbench.hardware.available_memory import available_memory

        memory = float(available_memory(CPU))
    source = "measured on this machine, or given"
    return Accelerator(CPU, "this machine's processor", memory, bandwidth, {"fp32": operations}, 0.0, 1, 0.0, source)


@cache
def _document() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
