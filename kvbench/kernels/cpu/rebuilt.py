"""The record by which the CPU kernel rebuilds and rotates keys."""

from __future__ import annotations

from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from kvbench.codecs.kernel_view import Coded, Same
from kvbench.hooks.turns import Rotary, Turn
from kvbench.kernels.cpu.column_layout import ColumnLayout, column_layout
from kvbench.kernels.cpu.key_decoder import key_decoder
from kvbench.kernels.cpu.llvm.rebuild_ops import STEP, TILE
from kvbench.kernels.cpu.records import RebuiltSide, TurnedQuery, nothing
from kvbench.kernels.rebuilding import RebuiltKeys, absorbed_dims


def rebuilds(coded: Coded, block: int) -> bool:
    """Whether the CPU kernel can rebuild keys from ``coded``, which it reads, with references every ``block``.

    Not if scales are of blocks, or in fp32.
    """
    scaled = coded.scale is not None and coded.scale.dtype != torch.float16
    return coded.blocks is None and not scaled and block % TILE == 0


def rebuilt_side(keys: RebuiltKeys) -> tuple[RebuiltSide, object]:
    """The record of ``keys``, but for :func:`rotation`, and what keeps its addresses valid."""
    prepared, turn = key_decoder(keys.coded, keys.decoder, keys.mean, keys.dims), keys.turn
    groups, heads, dims = prepared.shape
    orders = _orders(turn, tuple(range(keys.decoder.shape[-1])) if keys.dims is None else keys.dims, dims)
    record = RebuiltSide(
        decoder=prepared.decoder.ctypes.data,
        slices=prepared.decoder.shape[3],
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
        gathered=orders.gathered,
        vectors=prepared.vectors.ctypes.data,
        vector_count=len(prepared.vectors),
        **_NO_ROTATION,
    )
    return record, (prepared, orders)


def turned_query(keys: RebuiltKeys) -> tuple[TurnedQuery, object]:
    """The record of how queries absorb what is not rebuilt, but for :func:`rotation`, and what keeps it valid."""
    turn, dims, coded = keys.turn, keys.dims, keys.coded
    if not keys.block or dims is None or turn is None:
        return nothing(TurnedQuery), None
    tensors = Same(coded.component), Same(keys.decoder), Same(keys.mean)
    basis = _absorbing(column_layout(coded), *tensors, turn, dims)
    record = TurnedQuery(
        block=keys.block,
        dims=basis.dims.ctypes.data,
        absorbed=len(basis.dims),
        rotated=len(basis.partners),
        partners=basis.partners.ctypes.data,
        signs=basis.signs.ctypes.data,
        decoder=basis.decoder.ctypes.data,
        scale=basis.scale.ctypes.data,
        mean=basis.mean.ctypes.data,
        **_NO_ROTATION,
    )
    return record, basis


_ROTATION = ("cos", "sin", "table_rows", "table_dims", "positions", "position_row_stride", "position_head_stride")
"""The fields that come last in both records."""
_NO_ROTATION = dict.fromkeys(_ROTATION, 0)


_rotations: WeakKeyDictionary[Rotary, tuple[tuple[int, ...], object]] = WeakKeyDictionary()


def rotation(rotary: Rotary) -> tuple[tuple[int, ...], object]:
    """The fields that say where tables and positions lie, from ``cos`` on, and what keeps them valid."""
    known = _rotations.get(rotary)
    if known is None:  # all layers of a step rotate by the same object
        known = _rotations[rotary] = _rotation(rotary)
    return known


def _rotation(rotary: Rotary) -> tuple[tuple[int, ...], object]:
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
        angles = [min(dim, turn.partners[dim]) for dim in rotated] if turn else []  # both of a pair turn by one
        self.turns, self.gathered = np.array(angles, np.int64) * STEP, max(angles, default=-1) + 1
        self.signs = np.array([turn.signs[dim] for dim in rotated] if turn else [], np.float32)


@lru_cache(maxsize=64)
def _orders(turn: Turn | None, dims: tuple[int, ...], count: int) -> _Orders:
    return _Orders(turn, dims, count)


class _Absorbing:
    """What queries absorb, all dimensions but ``rebuilt`` ones: how these are turned, and their basis by column."""

    def __init__(
        self,
        layout: ColumnLayout,
        component: Tensor | None,
        basis: tuple[Tensor, Tensor],
        turn: Turn,
        rebuilt: tuple[int, ...],
    ) -> None:
        decoder, mean = basis
        dims, partners, signs = absorbed_dims(turn, rebuilt, decoder.shape[-1])
        self.dims, self.partners = np.array(dims, np.int64), np.array(partners, np.int64)
        self.signs = np.array(signs, np.float32)
        columns, used = layout.columns, len(layout.component_of_column)
        by_column = decoder.numpy()[:, layout.component_of_column][..., self.dims]  # (groups, columns, heads, dims)
        self.decoder = np.zeros((by_column.shape[0], by_column.shape[2], len(dims), columns), by_column.dtype)
        self.decoder[..., :used] = by_column.transpose(0, 2, 3, 1)
        self.mean = np.ascontiguousarray(mean.float().numpy()[..., self.dims])
        self.scale = np.zeros(columns, np.float32)
        scale = layout.column_scale(component)
        self.scale[:used] = 1 if scale is None else scale


@lru_cache(maxsize=1024)
def _absorbing(
    layout: ColumnLayout,
    component: Same[Tensor | None],
    decoder: Same[Tensor],
    mean: Same[Tensor],
    turn: Turn,
    rebuilt: tuple[int, ...],
) -> _Absorbing:
    return _Absorbing(layout, component.value, (decoder.value, mean.value), turn, rebuilt)


def _stride(positions: Tensor, axis: int) -> int:
    """Bytes from one row or group to the next; 0 where one stands for all."""
    return 4 * positions.stride(axis) if positions.shape[axis] > 1 else 0
