"""What kernels are told of keys that they rebuild from codes while they attend."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvbench.codecs.kernel_view import Coded
from kvbench.hooks.turns import Rotary, Turn


@dataclass(frozen=True, eq=False)
class RebuiltKeys:
    """Keys ``latents · decoder + mean``, rotated as ``turn`` says, and the latents' codes.

    ``decoder`` (groups, rank, heads of a group, head_dim) and ``mean`` (groups, heads of a group, head_dim); the very
    same tensors each time, by which kernels know what they have prepared. None: latents are the keys of a head.
    ``turn`` None: keys are used as they are. ``dims`` are the dimensions of a head that are rebuilt, None: all of them;
    the others are absorbed by queries that are turned back anew for every ``block`` of entries.
    """

    coded: Coded
    decoder: Tensor | None
    mean: Tensor | None
    turn: Turn | None = None
    dims: tuple[int, ...] | None = None
    block: int = 0


@dataclass(frozen=True, eq=False)
class KeyRotation:
    """Where rebuilt keys are rotated to, ``keys``, and queries back from: ``blocks``, every block's first entry."""

    keys: Rotary
    blocks: Rotary | None = None
