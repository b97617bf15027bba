"""What kernels are told of keys that they rebuild from codes while they attend."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from kvbench.codecs.kernel_view import Coded
from kvbench.hooks.turns import Rotary, Turn


@dataclass(frozen=True, eq=False)
class RebuiltKeys:
    """Keys ``latents · decoder + mean``, rotated as ``turn`` says, and the latents' codes.

    ``decoder`` (groups, rank, heads of a group, head_dim) and ``mean`` (groups, heads of a group, head_dim); the very
    same tensors each time, by which kernels know what they have prepared. ``turn`` None: keys are used as they are.
    ``dims`` are the dimensions of a head that are rebuilt, None: all of them; the others are absorbed by queries that
    are turned back anew for every ``block`` of entries.
    """

    coded: Coded
    decoder: Tensor
    mean: Tensor
    turn: Turn | None = None
    dims: tuple[int, ...] | None = None
    block: int = 0


@dataclass(frozen=True, eq=False)
class KeyRotation:
    """Where rebuilt keys are rotated to, ``keys``, and queries back from: ``blocks``, every block's first entry."""

    keys: Rotary
    blocks: Rotary | None = None


class AbsorbedDims(NamedTuple):
    """The ``dims`` of a head that queries absorb, ascending: first those that rotate, by ``partners`` and ``signs``."""

    dims: tuple[int, ...]
    partners: tuple[int, ...]
    signs: tuple[float, ...]


def absorbed_dims(turn: Turn, rebuilt: tuple[int, ...], head_dim: int) -> AbsorbedDims:
    """All of ``head_dim`` but those that are ``rebuilt``."""
    dims = tuple(dim for dim in range(head_dim) if dim not in set(rebuilt))
    rotated = [dim for dim in dims if dim < len(turn.partners)]
    return AbsorbedDims(dims, tuple(turn.partners[dim] for dim in rotated), tuple(turn.signs[dim] for dim in rotated))


@lru_cache(maxsize=64)
def identity_basis(groups: int, rank: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Decoder and mean where the latents of each group are the keys of a head: the same tensors each time."""
    one = torch.eye(rank, device=device).view(1, rank, 1, rank).expand(groups, -1, -1, -1)
    return one, torch.zeros(groups, 1, rank, device=device)
