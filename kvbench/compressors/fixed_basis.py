"""Bases that need no data: the same for every head, or a rotation of the latents that are there already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from kvbench.codecs.transforms.linear import LinearTransform
from kvbench.codecs.transforms.rotations import random_rotation, shared_basis
from kvbench.compressors.draft import Draft


def use_fixed_basis(draft: Draft, columns: Callable[[int], Tensor]) -> None:
    """Give every side of ``draft`` the orthonormal ``columns(head_dim)`` (head_dim, rank).

    All heads and layers of a width share one matrix in memory.
    """
    shared = _shared(draft, columns)
    for layer in draft:
        for side in layer.sides:
            side.transform = shared(layer.geometry.kv_heads, side.head_dim)


def rotate_latents(draft: Draft, seed: int) -> None:
    """Rotate what every side stores at random: its latents, or the heads where it has no transform.

    The rotation is absorbed into the basis that is there, also into one that every prompt fits for itself.
    """
    shared = _shared(draft, lambda size: random_rotation(size, seed))
    for layer in draft:
        for side in layer.sides:
            if side.transform is not None:
                side.transform = side.transform.rotated(random_rotation(side.transform.rank, seed))
            elif side.online is not None:
                side.online = replace(side.online, seed=seed)
            elif not side.joint:
                side.transform = shared(layer.geometry.kv_heads, side.head_dim)


def _shared(draft: Draft, columns: Callable[[int], Tensor]) -> Callable[[int, int], LinearTransform]:
    """Makes the transform of (kv heads, head_dim), once for each."""
    made: dict[tuple[int, int], LinearTransform] = {}

    def transform(kv_heads: int, size: int) -> LinearTransform:
        if (kv_heads, size) not in made:
            made[kv_heads, size] = shared_basis(columns(size), kv_heads, draft.basis_dtype, draft.geometry.device)
        return made[kv_heads, size]

    return transform
