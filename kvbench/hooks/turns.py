"""How a family's RoPE turns keys, measured: which dimension meets which other one, and with what sign.

Half-split, interleaved and partial conventions all are ``y_i = x_i cos_i + sign_i x_partner(i) sin_i``, with cos and
sin of a token's position. Kernels that rotate keys by themselves need partners and signs; what is not of this form is
left to the family's own function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Turn:
    """Partner and sign of each of the leading dimensions, those that are rotated."""

    partners: tuple[int, ...]
    signs: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Rotary:
    """The rotation of a body's entries: by ``turn``, with ``cos`` and ``sin`` (positions, dims) at ``positions``.

    ``positions`` is (1 or batch, 1 or groups, entries) int32.
    """

    turn: Turn
    cos: Tensor
    sin: Tensor
    positions: Tensor


@lru_cache(maxsize=64)
def measured_turn(apply: Callable[..., tuple[Tensor, Tensor]], dims: int) -> Turn | None:
    """How ``apply``, a family's ``apply_rotary_pos_emb``, turns ``dims`` dimensions; None if it does something else."""
    unit, nothing = torch.eye(dims).view(1, 1, dims, dims), torch.zeros(1, dims, dims)
    try:
        quarter = _applied(apply, unit, nothing, torch.ones_like(nothing))[0, 0]  # row i: where dimension i goes
        generator = torch.Generator().manual_seed(0)
        partners, signs = quarter.abs().argmax(0), quarter.sum(0)
        states, cos, sin = (torch.rand(1, 7, dims, generator=generator) for _ in range(3))
        cos, sin = ((table + table[..., partners]) / 2 for table in (cos, sin))  # both of a pair turn by one angle
        rotated = _applied(apply, states[None], cos, sin)[0]
    except (RuntimeError, IndexError, TypeError, ValueError):
        return None  # it takes tables of another shape
    if quarter.shape != (dims, dims) or rotated.shape != states.shape:
        return None
    expected = states * cos + signs * states[..., partners] * sin
    if not torch.allclose(rotated, expected, atol=1e-6):
        return None
    return Turn(tuple(partners.tolist()), tuple(signs.tolist()))


def _applied(apply: Callable[..., Any], states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotated: Tensor = apply(states, states, cos, sin)[0]
    return rotated
