"""The record by which the CPU kernel rebuilds and rotates keys."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from torch import Tensor

from kvbench.codecs.kernel_view import Coded
from kvbench.hooks.turns import Rotary, Turn
from kvbench.kernels.cpu.key_decoder import in_steps, key_decoder
from kvbench.kernels.cpu.llvm.rebuild_ops import STEP, TILE
from kvbench.kernels.cpu.records import RebuiltSide, TurnedQuery, nothing
from kvbench.kernels.rebuilding import RebuiltKeys


def rebuilds(coded: Coded, block: int) -> bool:
    """Whether the CPU kernel can rebuild keys from ``coded``, which it reads, with references every ``block``.

    Not if scales are of blocks.
    """
    return coded.blocks is None and in_steps(coded) and block % TILE == 0


def rebuilt_side(keys: RebuiltKeys) -> tuple[RebuiltSide, object]:
    """The record of ``keys``, but for :func:`rotation`, and what keeps its addresses valid."""
    prepared, turn = key_decoder(keys.coded, keys.decoder, keys.mean, keys.dims), keys.turn
    groups, heads, dims = prepared.shape
    head_dim = len(keys.coded.widths) if keys.decoder is None else keys.decoder.shape[-1]
    orders = _orders(turn, tuple(range(head_dim)) if keys.dims is None else keys.dims, dims)
    record = RebuiltSide(
        decoder=prepared.decoder.ctypes.data,
        steps=prepared.decoder.shape[3],
        heads=heads,
        dims=dims,
        rotated=len(orders.partners),
        offsets=prepared.offsets.ctypes.data,
        counts=prepared.counts.ctypes.data,
        unit=prepared.unit.ctypes.data,
        mean=prepared.mean.ctypes.data,
        start=prepared.start.ctypes.data,
        zero_weight=prepared.zero_weight.ctypes.data,
        groups=groups,
        query_dims=orders.query_dims.ctypes.data,
        partners=orders.partners.ctypes.data,
        turns=orders.turns.ctypes.data,
        signs=orders.signs.ctypes.data,
        **_NO_ROTATION,
    )
    return record, (prepared, orders)


def turned_query(keys: RebuiltKeys, head_dim: int) -> tuple[TurnedQuery, object]:
    """The record of how queries of ``head_dim`` components absorb what is not rebuilt, but for :func:`rotation`, and
    what keeps it valid."""
    turn, dims = keys.turn, keys.dims
    if not keys.block or dims is None or turn is None:
        return nothing(TurnedQuery), None
    absorbed = _absorbed(turn, dims, head_dim)
    record = TurnedQuery(
        block=keys.block,
        absorbed=absorbed.kept.ctypes.data,
        rotated=len(turn.partners),
        partners=absorbed.partners.ctypes.data,
        signs=absorbed.signs.ctypes.data,
        **_NO_ROTATION,
    )
    return record, absorbed


_ROTATION = ("cos", "sin", "table_rows", "table_dims", "positions", "position_row_stride", "position_head_stride")
"""The fields that come last in both records."""
_NO_ROTATION = dict.fromkeys(_ROTATION, 0)


def rotation(rotary: Rotary) -> tuple[tuple[int, ...], object]:
    """The fields that say where tables and positions lie, from ``cos`` on, and what keeps them valid."""
    cos, sin = (table.float().contiguous() for table in (rotary.cos, rotary.sin))
    positions = rotary.positions if rotary.positions.stride(-1) == 1 else rotary.positions.contiguous()
    tables = cos.data_ptr(), sin.data_ptr(), *cos.shape
    return (*tables, positions.data_ptr(), *(_stride(positions, axis) for axis in (0, 1))), (cos, sin, positions)


class _Orders:
    """Which component of a query each of the rebuilt ``dims`` meets, and what it is rotated with; those that are not
    rotated come last, and all of them are filled up to ``count``."""

    def __init__(self, turn: Turn | None, dims: tuple[int, ...], count: int) -> None:
        rotated = [] if turn is None else [dim for dim in dims if dim < len(turn.partners)]
        place = {dim: index for index, dim in enumerate(dims)}
        self.query_dims = np.full(count, -1, np.int64)
        self.query_dims[: len(dims)] = dims
        self.partners = np.array([place[turn.partners[dim]] for dim in rotated] if turn else [], np.int64) * STEP
        self.turns = np.array(rotated, np.int64) * STEP
        self.signs = np.array([turn.signs[dim] for dim in rotated] if turn else [], np.float32)


@lru_cache(maxsize=64)
def _orders(turn: Turn | None, dims: tuple[int, ...], count: int) -> _Orders:
    return _Orders(turn, dims, count)


class _Absorbed:
    """Which of ``head_dim`` components of a query are absorbed, all but ``dims``, and how they are turned."""

    def __init__(self, turn: Turn, dims: tuple[int, ...], head_dim: int) -> None:
        self.kept = np.ones(head_dim, np.float32)
        self.kept[list(dims)] = 0
        self.partners, self.signs = np.array(turn.partners, np.int64), np.array(turn.signs, np.float32)


@lru_cache(maxsize=64)
def _absorbed(turn: Turn, dims: tuple[int, ...], head_dim: int) -> _Absorbed:
    return _Absorbed(turn, dims, head_dim)


def _stride(positions: Tensor, axis: int) -> int:
    """Bytes from one row or group to the next; 0 where one stands for all."""
    return 4 * positions.stride(axis) if positions.shape[axis] > 1 else 0
