"""Decode attention over exact fp32 keys and values on the CPU: a byte is read once for all queries of a head group.

``side`` is an :class:`~kvbench.kernels.cpu.records.ExactSide`, ``work`` a
:class:`~kvbench.kernels.cpu.records.Workspace`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import float_ops, vectors
from kvbench.kernels.cpu.memory import JIT, TILE, floats, record_at
from kvbench.kernels.cpu.projection_kernel import dot, lane_sum
from kvbench.kernels.cpu.records import EXACT_SIDE, WORKSPACE
from kvbench.kernels.cpu.softmax_kernel import apply_mask, begin_softmax, update_softmax
from kvbench.kernels.cpu.workspace import exact_workspace

_SIDE_BYTES = EXACT_SIDE.itemsize
_AT_ONCE = 3
"""Rows of queries whose dot products share a load of the keys."""


@njit(**JIT)
def attend_exact(first: int, last: int, job: Any) -> None:
    """Units [first, last) of an :class:`~kvbench.kernels.cpu.records.ExactJob`."""
    block = exact_workspace(job.rows, job.value_width)
    work = record_at(block.ctypes.data, WORKSPACE)
    for unit in range(first, last):
        pair, split = unit // job.splits, unit % job.splits
        row, head = pair // job.heads, pair % job.heads
        begin_softmax(work)
        query, before = job.query + 4 * pair * job.rows * job.key_width, 0
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
def state_address(side: Any, row: int, head: int, start: int) -> int:
    """Where the key or value of token ``start`` lies."""
    return side.states + row * side.row_stride + head * side.head_stride + start * side.token_stride


@njit(**JIT)
def score_tile(key: int, side: Any, query: int, count: int, work: Any) -> None:
    """Scores of ``count`` tokens from address ``key`` on: four at a time; a ragged end is scored token by token."""
    components, step, wide, rows = side.components, side.token_stride, 4 * TILE, work.rows
    whole = count // 4 * 4
    for row in range(0, rows, _AT_ONCE):
        q, out, some = query + 4 * row * components, work.scores + row * wide, min(_AT_ONCE, rows - row)
        for token in range(0, whole, 4):
            float_ops.exact_scores(key + token * step, q, out + 4 * token, some, components, step, 4 * components, wide)
    for row in range(rows):
        scores = floats(work.scores + row * wide, TILE)
        for token in range(whole, count):
            scores[token] = dot(query + 4 * row * components, key + token * step, components)


@njit(**JIT)
def mix_tile(value: int, side: Any, count: int, work: Any) -> None:
    """Add Σ p · values of ``count`` tokens from address ``value`` on to ``total``."""
    components, step, rows = side.components, side.token_stride, work.rows
    for row in range(0, rows, _AT_ONCE):
        weights, some = work.scores + 4 * row * TILE, min(_AT_ONCE, rows - row)
        for column in range(0, components, 4 * vectors.LANES):
            total, rest = work.total + 4 * (row * components + column), components - column
            float_ops.exact_mix(value + 4 * column, weights, total, some, count, step, 4 * TILE, 4 * components, rest)


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
