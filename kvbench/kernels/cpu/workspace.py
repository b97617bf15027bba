"""A thread's memory during a job: one block, cut into the parts of a :class:`~kvbench.kernels.cpu.records.Workspace`.

The block begins with the record itself. Whoever takes a workspace keeps its block alive until the last use: numba drops
an array after the last line that names it, and everything else knows addresses only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import vectors
from kvbench.kernels.cpu.memory import JIT, ROWS_AT_ONCE, TILE, record_at
from kvbench.kernels.cpu.records import WORKSPACE
from kvbench.kernels.cpu.tile_kernel import AFFINE_BYTES

_LINE = 64
"""Every part begins on a cache line of its own."""
_RECORD = WORKSPACE.itemsize
_AHEAD = 3
"""Numbers behind its last that a row of less than four components writes."""
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
    at = _cut_softmax(work, base, rows, values.padded_columns, vectors.LANES * values.channel_groups)
    at = _cut_rebuilt(work, at, job)
    work.key_tile, at = at, _aligned(at + TILE * keys.padded_columns + _SPARE)
    work.value_tile, at = at, _aligned(at + TILE * values.padded_columns + _SPARE)
    work.query_stride = 4 * keys.padded_columns
    work.query_bytes, at = at, _aligned(at + 2 * keys.channel_groups * rows * work.query_stride)
    work.query_unit, at = at, _aligned(at + 4 * keys.channel_groups * rows)
    work.query_sum, at = at, _aligned(at + 4 * keys.channel_groups * rows)
    work.column_query, at = at, _aligned(at + 4 * rows * keys.padded_columns)
    work.column_scale, at = at, _aligned(at + 4 * keys.padded_columns)
    work.scaled_query, at = at, _aligned(at + 4 * ROWS_AT_ONCE * keys.padded_columns)
    work.block_zero, at = at, _aligned(at + 4 * keys.components)
    work.block_score, at = at, _aligned(at + 4 * rows)
    work.affine, at = at, _aligned(at + AFFINE_BYTES * max(keys.channel_groups, values.channel_groups))
    work.products, at = at, _aligned(at + 4 * 6 * TILE)
    work.weight_bytes, at = at, _aligned(at + 6 * TILE)
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
    work.step_tile, at = at, _aligned(at + TILE * stream.padded_columns)
    work.key_states, at = at, _aligned(at + 4 * TILE * rebuilt.dims)
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
