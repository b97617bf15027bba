"""Decode attention over exact keys and values on the CPU: a byte is read once for all queries of a head group.

They are stored in fp32, fp16 or bf16, each span in its way; scores, weights and sums are fp32.

``side`` is an :class:`~kvbench.kernels.cpu.records.ExactSide`, ``work`` a
:class:`~kvbench.kernels.cpu.workspace.Workspace`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import exact_ops, vectors
from kvbench.kernels.cpu.memory import JIT, TILE, floats, record_at
from kvbench.kernels.cpu.projection_kernel import lane_sum
from kvbench.kernels.cpu.records import EXACT_SIDE
from kvbench.kernels.cpu.softmax_kernel import apply_mask, begin_softmax, update_softmax
from kvbench.kernels.cpu.workspace import WORKSPACE, exact_workspace

_SIDE_BYTES = EXACT_SIDE.itemsize
_AT_ONCE = 3
"""Rows of queries whose dot products share a load of the keys."""


@njit(**JIT)
def attend_exact(first: int, last: int, job: Any) -> None:
    """Units [first, last) of an :class:`~kvbench.kernels.cpu.records.ExactJob`."""
    block = exact_workspace(job.rows, job.key_width, job.value_width)
    work = record_at(block.ctypes.data, WORKSPACE)
    scaling = vectors.as_float(np.int32(job.scaling))
    for unit in range(first, last):
        pair, split = unit // job.splits, unit % job.splits
        row, head = pair // job.heads, pair % job.heads
        begin_softmax(work)
        query, before = scaled_query(job.query + 4 * pair * job.rows * job.key_width, job.key_width, scaling, work), 0
        mask = job.mask and job.mask + row * job.mask_row_stride + head * job.mask_head_stride
        for span in range(job.spans):
            keys = record_at(job.sides + _SIDE_BYTES * 2 * span, EXACT_SIDE)
            values = record_at(job.sides + _SIDE_BYTES * (2 * span + 1), EXACT_SIDE)
            tiles = (keys.tokens + TILE - 1) // TILE
            for tile in range(tiles * split // job.splits, tiles * (split + 1) // job.splits):
                start = tile * TILE
                count = min(TILE, keys.tokens - start)
                score_tile(state_address(keys, row, head, start), keys, query, count, work)
                apply_mask(work, mask and mask + before + start, count)
                if update_softmax(work):
                    mix_tile(state_address(values, row, head, start), values, count, work)
            before += keys.tokens
        normalise(work, job.output + 4 * unit * job.rows * job.value_width, job.lse + 4 * unit * job.rows)
    block[0] = 0


@njit(**JIT)
def scaled_query(query: int, width: int, scaling: Any, work: Any) -> int:
    """Where the queries (rows, width) are, times the scaling."""
    given, scaled = floats(query, work.rows * width), floats(work.scaled_query, work.rows * width)
    for i in range(work.rows * width):
        scaled[i] = given[i] * scaling
    return work.scaled_query  # type: ignore[no-any-return]


@njit(**JIT)
def state_address(side: Any, row: int, head: int, start: int) -> int:
    """Where the key or value of token ``start`` lies."""
    return side.states + row * side.row_stride + head * side.head_stride + start * side.token_stride


@njit(**JIT)
def score_tile(key: int, side: Any, query: int, count: int, work: Any) -> None:
    """Scores of ``count`` tokens from address ``key`` on."""
    components, step, wide = side.components, side.token_stride, 4 * TILE
    for row in range(0, work.rows, _AT_ONCE):
        q, out, together = query + 4 * row * components, work.scores + row * wide, min(_AT_ONCE, work.rows - row)
        exact_ops.exact_scores(
            key, q, out, together, count, components, step, 4 * components, wide, TILE * step, side.kind
        )


@njit(**JIT)
def mix_tile(value: int, side: Any, count: int, work: Any) -> None:
    """Add Σ p · values of ``count`` tokens from address ``value`` on to ``total``."""
    components, step, wide = side.components, side.token_stride, 4 * TILE
    for row in range(0, work.rows, _AT_ONCE):
        weights, together = work.scores + row * wide, min(_AT_ONCE, work.rows - row)
        for column in range(0, components, exact_ops.COLUMNS):
            total, rest = work.total + 4 * (row * components + column), components - column
            at = value + column * side.itemsize
            exact_ops.exact_mix(
                at, weights, total, together, count, step, wide, 4 * components, rest, TILE * step, side.kind
            )


@njit(**JIT)
def normalise(work: Any, out: int, lse: int) -> None:
    """Output (rows, value_width) and log-sum-exp (rows,) of one unit."""
    width, log_sums, top = work.total_width, floats(lse, work.rows), floats(work.top, work.rows)
    for row in range(work.rows):
        mass = lane_sum(work.mass + 4 * row * vectors.LANES)
        log_sums[row] = top[row] + np.log(mass)
        total, output = floats(work.total + 4 * row * width, width), floats(out + 4 * row * width, width)
        for i in range(width):
            output[i] = total[i] / mass
