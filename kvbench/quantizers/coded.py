"""How a kernel reads what a quantizer stored: codes, levels and scales, by their meaning instead of by quantizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from kvbench.quantizers.base import Stored


@dataclass(frozen=True, eq=False)
class Coded:
    """One stored side: component c, token t is ``component[c] · (scale[t, g] · u + zero[t, g])``, g = c // ``channel``.

    ``codes`` (batch, groups, tokens / 8, bytes) packed by ``widths``; u is the code itself, or its entry in ``levels``
    by width. ``scale`` and ``zero`` (batch, groups, tokens, channel groups) fp16, None: one and zero. ``component``
    (rank,), None: ones.
    """

    codes: Tensor
    widths: tuple[int, ...]
    channel: int
    levels: Mapping[int, Tensor] | None = None
    scale: Tensor | None = None
    zero: Tensor | None = None
    component: Tensor | None = None


@runtime_checkable
class Readable(Protocol):
    """A quantizer whose stored tensors kernels can read without decoding them."""

    def coded(self, stored: Stored) -> Coded | None:
        """``stored`` by its meaning; None where this setting has no such form."""
