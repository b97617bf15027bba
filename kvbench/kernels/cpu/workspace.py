"""A thread's memory during a job: one block, cut into the parts of a :class:`Workspace`.

The block begins with the record itself. Whoever takes a workspace keeps its block alive until the last use: numba drops
an array after the last line that names it, and everything else knows addresses only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import matrix_ops, rebuild_ops, vectors
from kvbench.kernels.cpu.memory import JIT, ROWS_AT_ONCE, TILE, record_at
from kvbench.kernels.cpu.records import dtype_of
from kvbench.kernels.cpu.tile_kernel import AFFINE_BYTES


class Workspace(NamedTuple):
    """One thread's memory during a job. Arrays are fp32 and laid out row by row unless said."""

    rows: int
    scores: int
    """(rows, TILE): scores of a tile, then softmax weights."""
    top: int
    """(rows,): the largest score so far."""
    mass: int
    """(rows, LANES): partial sums of the weights."""
    peak: int
    """(rows,): a power of two that no weight of the tile exceeds."""
    total: int
    """(rows, total_width): weighted sums of values."""
    total_width: int
    bias: int
    """(rows, bias_width): partial sums of weights times zeros, LANES of them for each channel group."""
    bias_width: int
    key_tile: int
    """Unpacked bytes of a tile; so are ``stream_tile``, of what keys are rebuilt from, and ``value_tile``."""
    stream_tile: int
    value_tile: int
    query_block: int
    """The block of tokens that ``query_bytes`` are for; -1 before the first."""
    query_bytes: int
    """int8 (channel groups, 2 · rows, query_stride): queries as two signed bytes; for matrices a byte a column."""
    query_stride: int
    query_unit: int
    """(channel groups, rows): what the first byte counts; the sums over a channel group are at ``query_sum``."""
    query_sum: int
    column_query: int
    """(rows, padded columns of keys): queries by column, zeros where there is none."""
    column_scale: int
    """(padded columns of keys,): what they are multiplied with in this block."""
    scaled_query: int
    """(3, padded columns of keys): three of them times that; of exact keys, (rows, components): times the scaling."""
    block_zero: int
    """(components of keys,): zeros of this block."""
    block_score: int
    """(rows,): what they add to the score of every token."""
    affine: int
    """(channel groups, 2, TILE): scales and zeros of a tile."""
    products: int
    """int32 (2 · rows up to 16s, TILE): integer dot products of three rows, or of all by matrices; and what keys are
    rebuilt from."""
    weight_bytes: int
    """uint8 (2 · rows up to 16s, TILE): softmax weights of so many rows as two unsigned bytes."""
    weight_unit: int
    """(rows,)."""
    latent_query: int
    """(rows, components of keys)."""
    mean_score: int
    """(rows,): the query times the mean of the keys."""
    latent_output: int
    """(rows, components of values)."""
    head_mean: int
    """(head_dim of keys,): the mean of a head's keys."""
    step_tile: int
    """A tile's bytes in steps of four columns."""
    key_states: int
    """(dims, TILE): one head's rebuilt keys."""
    absorbed_query: int
    """(rows, absorbed): queries without the components that meet rebuilt keys; ``partner_query``: what each is
    turned with, by ``block_cos`` and ``block_sin``; ``turned_query``: queries turned back to a block."""
    partner_query: int
    block_cos: int
    block_sin: int
    turned_query: int
    head_query: int
    """(rows, dims): queries as rebuilt keys meet them, scaled."""
    places: int
    """(TILE,) int64: rows of a tile's tokens in the tables of cos and sin, which are brought to ``cos``, ``sin``."""
    cos: int
    """(table_dims up to 16s, TILE)."""
    sin: int
    token_affine: int
    """(channel groups, 2, TILE): scales and zeros of a tile."""


WORKSPACE = dtype_of(Workspace)

_LINE = 64
"""Every part begins on a cache line of its own."""
_RECORD = WORKSPACE.itemsize
_AHEAD = 3
"""Numbers behind its last that a row of less than four components writes."""
_ROWS = matrix_ops.ROWS
"""Of a matrix: what is behind the last row or column is read, and multiplied by 0 or not looked at."""
_SPARE = 256
"""Bytes behind a tile that vectors may read when its last columns fill none."""


@njit(**JIT)
def coded_workspace(job: Any) -> Any:
    """The block for a :class:`~kvbench.kernels.cpu.records.CodedJob`; the record lies at its beginning."""
    sizes = np.empty(_RECORD + _LINE, np.uint8)
    block = np.empty(_cut_coded(record_at(sizes.ctypes.data, WORKSPACE), 0, job) + 2 * _LINE, np.uint8)
    work = record_at(block.ctypes.data, WORKSPACE)
    _cut_coded(work, block.ctypes.data, job)
    sizes[0] = 0
    return block


@njit(**JIT)
def exact_workspace(rows: int, key_width: int, value_width: int) -> Any:
    """The block for a :class:`~kvbench.kernels.cpu.records.ExactJob`; the record lies at its beginning."""
    sizes = np.empty(_RECORD + _LINE, np.uint8)
    end = _cut_exact(record_at(sizes.ctypes.data, WORKSPACE), 0, rows, key_width, value_width)
    block = np.empty(end + 2 * _LINE, np.uint8)
    _cut_exact(record_at(block.ctypes.data, WORKSPACE), block.ctypes.data, rows, key_width, value_width)
    sizes[0] = 0
    return block


@njit(**JIT)
def _cut_exact(work: Any, base: int, rows: int, key_width: int, value_width: int) -> int:
    """Cut a block at ``base`` for exact spans; where it ends."""
    at = _cut_softmax(work, base, rows, value_width, 0)
    work.scaled_query, at = at, _aligned(at + 4 * rows * key_width)
    return at


@njit(**JIT)
def _cut_softmax(work: Any, base: int, rows: int, total_width: int, bias_width: int) -> int:
    """Cut what every online softmax needs off a block at ``base``; where the rest begins."""
    work.rows, work.total_width, work.bias_width = rows, total_width, bias_width
    at = _aligned(base + _RECORD)
    work.scores, at = at, _aligned(at + 4 * rows * TILE)
    work.top, at = at, _aligned(at + 4 * rows)
    work.mass, at = at, _aligned(at + 4 * rows * vectors.LANES)
    work.peak, at = at, _aligned(at + 4 * rows)
    work.total, at = at, _aligned(at + 4 * rows * total_width)
    work.bias, at = at, _aligned(at + 4 * rows * bias_width)
    return at


@njit(**JIT)
def _cut_coded(work: Any, base: int, job: Any) -> int:
    """Cut a block at ``base`` for packed codes; where it ends."""
    keys, values, rows = job.keys, job.values, job.rows
    byte_rows = max((2 * rows + _ROWS - 1) // _ROWS * _ROWS, 2 * rebuild_ops.DIMS)
    at = _cut_softmax(work, base, rows, values.padded_columns, vectors.LANES * values.column_groups)
    at = _cut_rebuilt(work, at, job)
    work.key_tile, at = at, _aligned(at + TILE * keys.padded_columns + _SPARE)
    work.value_tile, at = at, _aligned(at + TILE * values.padded_columns + _SPARE)
    work.query_stride = 4 * keys.padded_columns
    work.query_bytes, at = at, _aligned(at + (2 * keys.column_groups * rows + _ROWS) * work.query_stride)
    work.query_unit, at = at, _aligned(at + 4 * keys.column_groups * rows)
    work.query_sum, at = at, _aligned(at + 4 * keys.column_groups * rows)
    work.column_query, at = at, _aligned(at + 4 * rows * keys.padded_columns)
    work.column_scale, at = at, _aligned(at + 4 * keys.padded_columns)
    work.scaled_query, at = at, _aligned(at + 4 * ROWS_AT_ONCE * keys.padded_columns)
    work.block_zero, at = at, _aligned(at + 4 * keys.components)
    work.block_score, at = at, _aligned(at + 4 * rows)
    work.affine, at = at, _aligned(at + AFFINE_BYTES * max(keys.channel_groups, values.channel_groups))
    work.products, at = at, _aligned(at + 4 * byte_rows * TILE)
    work.weight_bytes, at = at, _aligned(at + byte_rows * TILE)
    work.weight_unit, at = at, _aligned(at + 4 * rows)
    work.latent_query, at = at, _aligned(at + 4 * (rows * keys.components + _AHEAD))
    work.mean_score, at = at, _aligned(at + 4 * rows)
    work.latent_output, at = at, _aligned(at + 4 * rows * values.components)
    work.head_mean, at = at, _aligned(at + 4 * keys.head_dim)
    return at


@njit(**JIT)
def _cut_rebuilt(work: Any, at: int, job: Any) -> int:
    """Cut what rebuilt keys need off a block; where the rest begins."""
    rebuilt, stream = job.rebuilt, job.stream
    table_rows = (rebuilt.table_dims + vectors.LANES - 1) // vectors.LANES * vectors.LANES
    work.stream_tile, at = at, _aligned(at + TILE * stream.padded_columns + _SPARE)
    work.step_tile, at = at, _aligned(at + TILE * (max(stream.padded_columns, job.keys.padded_columns) + 4 * _ROWS))
    work.key_states, at = at, _aligned(at + 4 * TILE * rebuilt.dims)
    work.absorbed_query, at = at, _aligned(at + 4 * job.rows * job.query_width)
    work.partner_query, at = at, _aligned(at + 4 * job.rows * job.query_width)
    work.block_cos, at = at, _aligned(at + 4 * job.query_width)
    work.block_sin, at = at, _aligned(at + 4 * job.query_width)
    work.turned_query, at = at, _aligned(at + 4 * job.rows * job.query_width)
    work.head_query, at = at, _aligned(at + 4 * job.rows * rebuilt.dims)
    work.places, at = at, _aligned(at + 8 * TILE)
    work.cos, at = at, _aligned(at + 4 * TILE * table_rows)
    work.sin, at = at, _aligned(at + 4 * TILE * table_rows)
    work.token_affine, at = at, _aligned(at + AFFINE_BYTES * stream.channel_groups)
    return at


@njit(**JIT)
def _aligned(address: int) -> int:
    return (address + _LINE - 1) // _LINE * _LINE
