"""Bases that need no data, given to every head alike."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kvbench.compressors.draft import Draft
from kvbench.transforms.linear import LinearTransform
from kvbench.transforms.rotations import shared_basis


def use_fixed_basis(draft: Draft, columns: Callable[[int], Tensor]) -> None:
    """Give every side of ``draft`` the orthonormal ``columns(head_dim)`` (head_dim, rank).

    All heads and layers of a width share one matrix in memory.
    """
    made: dict[tuple[int, int], LinearTransform] = {}
    for layer in draft:
        for side in layer.sides:
            key = (layer.geometry.kv_heads, side.head_dim)
            if key not in made:
                made[key] = shared_basis(columns(side.head_dim), key[0], draft.dtype, draft.geometry.device)
            side.transform = made[key]
