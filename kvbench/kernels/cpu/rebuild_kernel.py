"""Scores of keys that are stored before RoPE: a tile's keys are rebuilt head by head, rotated, and meet the queries.

Nothing leaves the first-level caches: 64 tokens of one head's keys at a time. ``stream`` is the
:class:`~kvbench.kernels.cpu.records.CodedSide` that keys are rebuilt from, ``rebuilt`` the
:class:`~kvbench.kernels.cpu.records.RebuiltSide` that says how, ``work`` a
:class:`~kvbench.kernels.cpu.workspace.Workspace`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import float_ops, matrix_ops, rebuild_ops, vectors
from kvbench.kernels.cpu.memory import JIT, TILE, floats, ints, longs
from kvbench.kernels.cpu.tile_kernel import AFFINE_BYTES, read_halves, scale_offset

_F = np.float32
_ROW = 4 * TILE
"""Bytes of a row of 64 numbers."""
_DIMS = rebuild_ops.DIMS
_SLICE_BYTES = rebuild_ops.COLUMNS * _DIMS
"""Of a slice's factors for :data:`_DIMS` dimensions."""
_BY_MATRICES = matrix_ops.has_matrices()
_AT_ONCE = 3
"""Rows of queries that share a load of the keys."""


@njit(**JIT)
def place_query(query: int, width: int, scaling: Any, rebuilt: Any, work: Any) -> None:
    """Queries (rows, width) → ``head_query``: the components that rebuilt keys have, in their order, scaled."""
    components = longs(rebuilt.query_dims, rebuilt.dims)
    for row in range(work.rows):
        x, y = floats(query + 4 * row * width, width), floats(work.head_query + 4 * row * rebuilt.dims, rebuilt.dims)
        for dim in range(rebuilt.dims):
            component = components[dim]
            y[dim] = x[component] * scaling if component >= 0 else _F(0)


@njit(**JIT)
def split_query(query: int, width: int, turned: Any, work: Any) -> None:
    """Queries (rows, width) → ``absorbed_query`` and ``partner_query``, which are the same for all blocks."""
    count, dims, signs = turned.absorbed, longs(turned.dims, turned.absorbed), floats(turned.signs, turned.rotated)
    partners = longs(turned.partners, turned.rotated)
    for r in range(work.rows):
        x, kept = floats(query + 4 * r * width, width), floats(work.absorbed_query + 4 * r * count, count)
        partner = floats(work.partner_query + 4 * r * count, count)
        for i in range(count):
            kept[i] = x[dims[i]]
        for i in range(turned.rotated):
            partner[i] = signs[i] * x[partners[i]]


@njit(**JIT)
def turn_query(turned: Any, row: int, head: int, block: int, work: Any) -> None:
    """``absorbed_query`` → ``turned_query`` (rows, absorbed): turned back to a block's first position.

    With keys R x of a rotation R, q · R x = (Rᵀ q) · x: the same cosines, and sines of the opposite sign.
    """
    address = turned.positions + row * turned.position_row_stride + head * turned.position_head_stride + 4 * block
    position = min(max(ints(address, 1)[0], 0), turned.table_rows - 1)  # padding may be at any position
    place, count, rotated = 4 * turned.table_dims * position, turned.absorbed, turned.rotated
    all_cos, all_sin = floats(turned.cos + place, turned.table_dims), floats(turned.sin + place, turned.table_dims)
    dims, cos, sin = longs(turned.dims, rotated), floats(work.block_cos, rotated), floats(work.block_sin, rotated)
    for i in range(rotated):
        cos[i], sin[i] = all_cos[dims[i]], all_sin[dims[i]]
    for r in range(work.rows):
        x, y = floats(work.absorbed_query + 4 * r * count, count), floats(work.turned_query + 4 * r * count, count)
        partner = floats(work.partner_query + 4 * r * count, count)
        for i in range(rotated):
            y[i] = x[i] * cos[i] - partner[i] * sin[i]
        for i in range(rotated, count):
            y[i] = x[i]


@njit(**JIT)
def read_token_affine(stream: Any, row: int, head: int, start: int, count: int, work: Any) -> None:
    """Scales and zeros of a tile's tokens as they are stored, two rows of 64 a channel group; nothing without any."""
    if not stream.scale:
        return
    offset, groups, to = scale_offset(stream, row, head, start), stream.channel_groups, work.token_affine
    read_halves(stream.scale + offset, count, groups, to)
    if stream.zero:
        read_halves(stream.zero + offset, count, groups, to + _ROW)
        return
    for channel in range(groups):
        float_ops.fill_row(to + AFFINE_BYTES * channel + _ROW, _F(0), TILE // 16)


@njit(**JIT)
def rotary_tile(rebuilt: Any, row: int, head: int, start: int, count: int, work: Any) -> None:
    """cos and sin of a tile's tokens, a row of 64 for each dimension of the tables that is used."""
    if not rebuilt.rotated:
        return
    address = rebuilt.positions + row * rebuilt.position_row_stride + head * rebuilt.position_head_stride + 4 * start
    positions, places, last = ints(address, count), longs(work.places, TILE), rebuilt.table_rows - 1
    for token in range(TILE):  # padding may be at any position
        places[token] = min(max(positions[min(token, count - 1)], 0), last)
    rebuild_ops.gather_columns(rebuilt.cos, 4 * rebuilt.table_dims, work.places, rebuilt.gathered, work.cos)
    rebuild_ops.gather_columns(rebuilt.sin, 4 * rebuilt.table_dims, work.places, rebuilt.gathered, work.sin)


@njit(**JIT)
def into_steps(tile: int, side: Any, work: Any) -> None:
    """A tile of bytes in quads at ``tile`` → ``step_tile``, all columns of a side."""
    for vector in range(side.padded_columns // vectors.LANES):
        rebuild_ops.into_steps(tile + 64 * vector, 4 * side.padded_columns, work.step_tile + 4 * _ROW * vector)


@njit(**JIT)
def used_into_steps(tile: int, stream: Any, rebuilt: Any, work: Any) -> None:
    """:func:`into_steps` of those columns that keys are rebuilt from."""
    used = longs(rebuilt.vectors, rebuilt.vector_count)
    for index in range(rebuilt.vector_count):
        vector = used[index]
        rebuild_ops.into_steps(tile + 64 * vector, 4 * stream.padded_columns, work.step_tile + 4 * _ROW * vector)


@njit(**JIT)
def add_rebuilt_scores(stream: Any, rebuilt: Any, group: int, work: Any) -> None:
    """Add the scores of a tile, whose bytes are in ``step_tile``, to ``scores``."""
    rows, dims = work.rows // rebuilt.heads, rebuilt.dims
    for head in range(rebuilt.heads):
        rebuild_head(stream, rebuilt, group, head, work)
        for row in range(head * rows, (head + 1) * rows, _AT_ONCE):
            rebuild_ops.rotated_scores(
                work.key_states,
                work.head_query + 4 * row * dims,
                work.scores + _ROW * row,
                min(_AT_ONCE, (head + 1) * rows - row),
                4 * dims,
                dims,
                rebuilt.rotated,
                rebuilt.partners,
                rebuilt.signs,
                rebuilt.turns,
                work.cos,
                work.sin,
            )


@njit(**JIT)
def rebuild_head(stream: Any, rebuilt: Any, group: int, head: int, work: Any) -> None:
    """One head's keys of a tile: ``key_states`` (dims, 64)."""
    dims, scaled = rebuilt.dims, 1 if stream.scale else 0
    first_dim = (group * rebuilt.heads + head) * dims
    channel_dims = rebuilt.groups * rebuilt.heads * dims
    for token in range(0, TILE, rebuild_ops.TOKENS):
        for dim in range(0, dims, _DIMS):
            place = first_dim + dim
            decoder = rebuilt.decoder + place // _DIMS * rebuilt.slices * _SLICE_BYTES
            out = work.key_states + _ROW * dim + 4 * token
            for channel in range(stream.channel_groups):
                counts = longs(rebuilt.counts + 24 * channel, 3)
                by_channel = 4 * (channel * channel_dims + place)
                steps, offsets = work.step_tile + 4 * token, rebuilt.offsets + 8 * counts[0]
                factors, first = decoder + _SLICE_BYTES * counts[0], 1 if channel == 0 else 0
                start, unit, mean = rebuilt.start + by_channel, rebuilt.unit + 4 * place, rebuilt.mean + 4 * place
                zero, affine = rebuilt.zero_weight + by_channel, work.token_affine + 2 * _ROW * channel + 4 * token
                if _BY_MATRICES:
                    matrix_ops.rebuild(steps, offsets, counts[1], counts[2], factors, work.products)
                    rebuild_ops.finish(work.products, start, unit, mean, zero, affine, scaled, first, out)
                else:
                    rebuild_ops.rebuild(
                        steps,
                        offsets,
                        counts[1],
                        counts[2],
                        factors,
                        start,
                        unit,
                        mean,
                        zero,
                        affine,
                        scaled,
                        first,
                        out,
                    )
