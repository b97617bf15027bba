"""Queries as the keys' bytes meet them: by column, times the scales of a block of tokens, rounded to two bytes.

With keys ``scale · u + zero`` per component and block, q · key = (q ⊙ scale) · u + q · zero: the bytes of a query are
made anew at the start of every block of tokens; ``query_block`` says for which block they are.

``side`` is a :class:`~kvbench.kernels.cpu.records.CodedSide`, ``work`` a
:class:`~kvbench.kernels.cpu.workspace.Workspace`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import product_ops, query_ops, vectors
from kvbench.kernels.cpu.memory import JIT, ROWS_AT_ONCE, fetch_ahead, fill, floats, halves, longs
from kvbench.kernels.cpu.projection_kernel import dot, project_query

_F = np.float32


@njit(**JIT)
def begin_query(query: int, width: int, scaling: Any, side: Any, head: int, work: Any) -> None:
    """Take a unit's queries (rows, head_dim), ``width`` numbers apart, to the keys' columns; their bytes are made at
    its first tile."""
    project_query(query, width, side, head, work)
    for row in range(work.rows):
        latent = work.latent_query + 4 * row * side.components
        query_by_column(latent, scaling, side, work.column_query + 4 * row * side.padded_columns)
    fill(work.column_scale, side.padded_columns, _F(1))
    fill(work.block_score, work.rows, _F(0))
    work.query_block = -1


@njit(**JIT)
def absorb_query(turned: Any, side: Any, group: int, scaling: Any, work: Any) -> None:
    """:func:`begin_query` of ``turned_query``, by a basis that lies by dimension and column."""
    each, count, columns = side.queries_per_head, turned.absorbed, side.padded_columns
    block_score = floats(work.block_score, work.rows)
    for head in range(work.rows // each):
        place = (group * (work.rows // each) + head) * count
        for row in range(head * each, (head + 1) * each, ROWS_AT_ONCE):
            query = work.turned_query + 4 * row * count
            together = min(ROWS_AT_ONCE, (head + 1) * each - row)
            query_ops.absorb(
                turned.decoder + (2 if side.basis_in_fp16 else 4) * place * columns,
                query,
                work.column_query + 4 * row * columns,
                count,
                columns // vectors.LANES,
                together,
                4 * count,
                4 * columns,
                turned.scale,
                scaling,
                side.basis_in_fp16,
            )
            for r in range(together):
                block_score[row + r] = dot(turned.mean + 4 * place, query + 4 * r * count, count) * scaling
    fill(work.column_scale, columns, _F(1))
    work.query_block = -1


@njit(**JIT)
def query_by_column(query: int, scaling: Any, side: Any, out: int) -> None:
    """One row of the query: components by column, times what a byte stands for; zeros in columns that are not used."""
    columns, ordered = side.columns, side.ordered_columns
    by_component, by_column = floats(query, side.components), floats(out, side.padded_columns)
    component = longs(side.component_of_column, columns)
    for i in range(ordered):
        by_column[i] = by_component[i] * scaling
    for i in range(ordered, columns):
        by_column[i] = by_component[component[i]] * scaling
    if side.column_scale:
        column_scale = floats(side.column_scale, columns)
        for i in range(columns):
            by_column[i] *= column_scale[i]
    for i in range(columns, side.padded_columns):
        by_column[i] = _F(0)


@njit(**JIT)
def query_for(side: Any, row: int, head: int, token: int, scaling: Any, work: Any) -> int:
    """Make the queries' bytes those of the block of ``token``, if they are not; the token at which the block ends."""
    size = side.block_tokens
    block = token // size if size else 0
    if block != work.query_block:
        work.query_block = block
        if size:
            read_block(side, row, head, block, scaling, work)
        round_query(side, work)
    return size * (block + 1) if size else 1 << 62


@njit(**JIT)
def block_offset(side: Any, row: int, head: int, block: int) -> int:
    """How many bytes behind the first scale of all those of a block lie."""
    return 2 * (row * side.block_row_stride + head * side.block_head_stride + block * side.components)


@njit(**JIT)
def prefetch_blocks(side: Any, row: int, head: int, start: int, count: int) -> None:
    """Prefetch scales and zeros of the blocks of ``count`` tokens from ``start`` on."""
    size = side.block_tokens
    if size:
        first, last = start // size, (start + count - 1) // size
        offset = block_offset(side, row, head, first)
        bytes_read = 2 * side.components * (last - first + 1)
        fetch_ahead(side.block_scale + offset, bytes_read)
        fetch_ahead(side.block_zero + offset, bytes_read)


@njit(**JIT)
def read_block(side: Any, row: int, head: int, block: int, scaling: Any, work: Any) -> None:
    """Scales of a block by column, and what its zeros add to the scores."""
    offset, components = block_offset(side, row, head, block), side.components
    if side.ordered_columns < side.columns:
        component, scale = longs(side.component_of_column, side.columns), halves(side.block_scale + offset, components)
        by_column = floats(work.column_scale, side.columns)
        for i in range(side.columns):
            by_column[i] = vectors.half_to_float(scale[component[i]])
    else:
        query_ops.widen(side.block_scale + offset, work.column_scale, side.columns)
    query_ops.widen(side.block_zero + offset, work.block_zero, components)
    for r in range(0, work.rows, ROWS_AT_ONCE):
        query_ops.scaled_dots(
            work.block_zero,
            work.latent_query + 4 * r * components,
            min(ROWS_AT_ONCE, work.rows - r),
            components,
            4 * components,
            scaling,
            work.block_score + 4 * r,
        )


@njit(**JIT)
def round_query(side: Any, work: Any) -> None:
    """Each row's query times the scales of its columns, to two signed bytes per column and channel group."""
    rows, row_bytes = work.rows, 4 * side.padded_columns
    if side.by_matrices:
        fill(work.query_bytes, 2 * side.column_groups * rows * work.query_stride // 4, _F(0))  # behind the last column
    for channel in range(side.column_groups):
        first = channel * side.group_columns
        columns = min(side.group_columns, side.padded_columns - first)
        for row in range(0, rows, ROWS_AT_ONCE):
            place = channel * rows + row
            query_ops.round_query(
                work.column_query + row * row_bytes + 4 * first,
                work.column_scale + 4 * first,
                work.scaled_query,
                min(ROWS_AT_ONCE, rows - row),
                columns // vectors.LANES,
                row_bytes,
                work.query_bytes + 2 * place * work.query_stride,
                work.query_stride,
                side.by_matrices,
                work.query_unit + 4 * place,
                work.query_sum + 4 * place,
            )
            if side.by_matrices:
                continue
            for r in range(place, place + min(ROWS_AT_ONCE, rows - row)):
                first_bytes = work.query_bytes + 2 * r * work.query_stride
                product_ops.join_query(first_bytes, first_bytes + work.query_stride, columns // vectors.LANES)
