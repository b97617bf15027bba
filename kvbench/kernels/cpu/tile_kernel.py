"""A tile of 64 tokens as the kernels read it: the bytes of its codes, and its scales and zeros.

``side`` is a :class:`~kvbench.kernels.cpu.records.CodedSide`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu import unpack_kernel
from kvbench.kernels.cpu.llvm import float_ops, vectors
from kvbench.kernels.cpu.memory import JIT, TILE, fetch_ahead, floats, halves, record_at
from kvbench.kernels.cpu.records import UNPACK_PLAN

_F = np.float32
_ROW_BYTES = 4 * TILE
AFFINE_BYTES = 2 * _ROW_BYTES
"""Of one channel group's scales and zeros."""


@njit(**JIT)
def code_address(side: Any, row: int, head: int, start: int) -> int:
    """Where the codes from token ``start`` on lie."""
    return side.codes + row * side.row_stride + head * side.head_stride + start // 8 * side.group_bytes


@njit(**JIT)
def scale_offset(side: Any, row: int, head: int, start: int) -> int:
    """How many bytes behind the first scale that of token ``start`` lies."""
    number = row * side.scale_row_stride + head * side.scale_head_stride + start * side.channel_groups
    return scale_bytes(side) * number


@njit(**JIT)
def scale_bytes(side: Any) -> int:
    """Of a scale, and of a zero."""
    return 4 if side.scale_in_fp32 else 2


@njit(**JIT)
def prefetch_scales(side: Any, row: int, head: int, start: int) -> None:
    """Prefetch a tile's scales: streams so short that the hardware does not foresee them, as it does codes."""
    if side.scale:
        offset, size = scale_offset(side, row, head, start), scale_bytes(side) * TILE * side.channel_groups
        fetch_ahead(side.scale + offset, size)
        if side.zero:
            fetch_ahead(side.zero + offset, size)


@njit(**JIT)
def tile_bytes(side: Any, row: int, head: int, start: int, count: int, buffer: int) -> int:
    """The address of ``count`` tokens' bytes in quads: the stored codes as they are, or unpacked to ``buffer``."""
    codes = code_address(side, row, head, start)
    if side.direct and count == TILE:
        return codes
    unpack(side, codes, count, buffer)
    return buffer


@njit(**JIT)
def whole_bytes(side: Any, row: int, head: int, start: int, count: int, buffer: int) -> int:
    """:func:`tile_bytes`, but nibbles are unpacked, too."""
    if not (side.direct and side.nibbles):
        return tile_bytes(side, row, head, start, count, buffer)
    unpack(side, code_address(side, row, head, start), count, buffer)
    return buffer


@njit(**JIT)
def unpack(side: Any, codes: int, count: int, buffer: int) -> None:
    """``count`` tokens' bytes in quads at ``buffer``."""
    fetch_ahead(codes + TILE // 8 * side.group_bytes, TILE // 8 * side.group_bytes)
    plan = record_at(side.unpack_plan, UNPACK_PLAN)
    unpack_kernel.unpack_tile(codes, side.group_bytes, (count + 7) // 8, plan, buffer, side.padded_columns)


@njit(**JIT)
def read_affine(side: Any, row: int, head: int, start: int, count: int, out: int) -> None:
    """(channel groups, 2, TILE) fp32 at ``out``: scales, then zeros of the tile's ``count`` tokens."""
    zero, constant = out + _ROW_BYTES, floats(side.affine, 2)
    if not side.scale:
        float_ops.fill_row(out, constant[0], TILE // 16)
        float_ops.fill_row(zero, constant[1], TILE // 16)
        return
    offset, groups = scale_offset(side, row, head, start), side.channel_groups
    read_scales(side, side.scale + offset, count, out)
    if side.zero:
        read_scales(side, side.zero + offset, count, zero)
        return
    for channel in range(groups):
        scale = out + AFFINE_BYTES * channel
        float_ops.scale_row(scale, constant[1], scale + _ROW_BYTES)
        float_ops.scale_row(scale, constant[0], scale)


@njit(**JIT)
def read_scales(side: Any, address: int, count: int, out: int) -> None:
    """Numbers (``count``, channel groups) as :func:`read_halves` has them."""
    groups = side.channel_groups
    if not side.scale_in_fp32:
        read_halves(address, count, groups, out)
        return
    x = floats(address, count * groups)
    for group in range(groups):
        y = floats(out + AFFINE_BYTES * group, TILE)
        for t in range(TILE):
            y[t] = x[t * groups + group] if t < count else _F(0)


@njit(**JIT)
def read_halves(address: int, count: int, groups: int, out: int) -> None:
    """fp16 numbers (``count``, ``groups``) as rows of 64 in fp32 for each group, AFFINE_BYTES apart; zeros beyond."""
    if count == TILE and (groups == 1 or groups == 2 or groups == 4):
        float_ops.from_halves(address, groups, out, AFFINE_BYTES)
        return
    x = halves(address, count * groups)
    for group in range(groups):
        y = floats(out + AFFINE_BYTES * group, TILE)
        for t in range(TILE):
            y[t] = vectors.half_to_float(x[t * groups + group]) if t < count else _F(0)
