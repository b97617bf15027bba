"""What kernels are told of keys that they rebuild from codes while they attend."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvbench.codecs.kernel_view import Coded
from kvbench.hooks.turns import Rotary


@dataclass(frozen=True, eq=False)
class BlockReferences:
    """Dimensions that are not rebuilt are absorbed by queries that are turned back anew for every ``block`` of entries.

    ``rotary`` rotates by the position of each block's first entry.
    """

    block: int
    rotary: Rotary


@dataclass(frozen=True, eq=False)
class RebuiltKeys:
    """Keys ``latents · decoder + mean``, rotated by ``rotary``, and the latents' codes.

    ``decoder`` (groups, rank, heads of a group, head_dim) and ``mean`` (groups, heads of a group, head_dim); the very
    same tensors at every step, by which kernels know what they have prepared. None: latents are the keys of a head.
    ``rotary`` None: keys are used as they are. ``dims`` are the dimensions of a head that are rebuilt, None: all of
    them; else ``references`` say how queries absorb the others.
    """

    coded: Coded
    decoder: Tensor | None
    mean: Tensor | None
    rotary: Rotary | None
    dims: tuple[int, ...] | None = None
    references: BlockReferences | None = None
