"""The record by which the CPU kernel rebuilds and rotates keys."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from kvbench.codecs.kernel_view import Coded
from kvbench.hooks.turns import Rotary, Turn
from kvbench.kernels.cpu.key_decoder import in_steps, key_decoder
from kvbench.kernels.cpu.llvm.rebuild_ops import STEP
from kvbench.kernels.cpu.records import RebuiltSide
from kvbench.kernels.rebuilding import RebuiltKeys


def rebuilds(coded: Coded) -> bool:
    """Whether the CPU kernel can rebuild keys from ``coded``, which it reads: not if scales are of blocks."""
    return coded.blocks is None and in_steps(coded)


def rebuilt_side(keys: RebuiltKeys) -> tuple[RebuiltSide, Any]:
    """The record of ``keys``, and what keeps its addresses valid."""
    prepared, rotary = key_decoder(keys.coded, keys.decoder, keys.mean), keys.rotary
    groups, heads, dims = prepared.unit.shape
    head_dim = len(keys.coded.widths) if keys.decoder is None else keys.decoder.shape[-1]
    orders = _orders(None if rotary is None else rotary.turn, head_dim, dims)
    cos, sin, positions = (None,) * 3 if rotary is None else _dense(rotary)
    steps = prepared.decoder.shape[3]
    record = RebuiltSide(
        decoder=prepared.decoder.ctypes.data,
        steps=steps,
        heads=heads,
        dims=dims,
        rotated=0 if rotary is None else len(rotary.turn.partners),
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
        cos=0 if cos is None else cos.data_ptr(),
        sin=0 if sin is None else sin.data_ptr(),
        table_rows=0 if cos is None else cos.shape[0],
        table_dims=0 if cos is None else cos.shape[1],
        positions=0 if positions is None else positions.data_ptr(),
        position_row_stride=0 if positions is None else _stride(positions, 0),
        position_head_stride=0 if positions is None else _stride(positions, 1),
    )
    return record, (prepared, orders, cos, sin, positions)


class _Orders:
    """Which component of a query each dimension meets, and what it is rotated with."""

    def __init__(self, turn: Turn | None, head_dim: int, dims: int) -> None:
        partners = () if turn is None else turn.partners
        self.query_dims = np.full(dims, -1, np.int64)
        self.query_dims[:head_dim] = np.arange(head_dim)
        self.partners = np.array(partners, np.int64) * STEP
        self.turns = np.arange(len(partners), dtype=np.int64) * STEP
        self.signs = np.array(() if turn is None else turn.signs, np.float32)


@lru_cache(maxsize=64)
def _orders(turn: Turn | None, head_dim: int, dims: int) -> _Orders:
    return _Orders(turn, head_dim, dims)


def _dense(rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    """Tables in fp32 and positions, entries side by side: as they are, unless a model keeps them otherwise."""
    cos, sin = (table.float().contiguous() for table in (rotary.cos, rotary.sin))
    positions = rotary.positions
    return cos, sin, positions if positions.stride(-1) == 1 else positions.contiguous()


def _stride(positions: Tensor, axis: int) -> int:
    """Bytes from one row or group to the next; 0 where one stands for all."""
    return 4 * positions.stride(axis) if positions.shape[axis] > 1 else 0
