"""Decode attention over exact fp32 keys and values on the CPU: a byte is read once for all queries of a head group."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import float_ops, vectors
from kvbench.kernels.cpu.memory import JIT, TILE, floats, longs
from kvbench.kernels.cpu.softmax_kernel import begin, hide, soften

# What an int64 vector `side` says about the keys or values of a span. Strides in bytes; components lie side by side.
ADDRESS, ROW, HEAD, TOKEN, RANK, TOKENS = 0, 1, 2, 3, 4, 5
FIELDS = 6

_F = np.float32


@njit(**JIT)
def attend_exact(
    unit: int,
    last: int,
    splits: int,
    spans: int,
    heads: int,
    rows: int,
    query: int,
    rank: int,
    width: int,
    sides: int,
    mask: int,
    mask_row: int,
    mask_head: int,
    out: int,
    lse: int,
) -> None:
    """Units [unit, last) of batch · heads · splits. ``query`` (batch, heads, rows, rank) fp32, scaled already.

    ``sides``: keys and values of one span after the other. ``out`` (units, rows, width) and ``lse`` (units, rows)
    receive every split's normalised output.
    """
    score, total = np.empty((rows, TILE), _F), np.empty((rows, width), _F)
    top, peak, mass = np.empty(rows, _F), np.empty(rows, _F), np.empty((rows, vectors.LANES), _F)
    bias = np.empty((rows, 0), _F)
    for index in range(unit, last):
        pair, split = index // splits, index % splits
        row, head = pair // heads, pair % heads
        begin(top, mass, total, bias)
        own, before = query + 4 * pair * rows * rank, 0
        for span in range(spans):
            keys = longs(sides + 8 * FIELDS * (2 * span), FIELDS)
            values = longs(sides + 8 * FIELDS * (2 * span + 1), FIELDS)
            blocks = (keys[TOKENS] + TILE - 1) // TILE
            for block in range(blocks * split // splits, blocks * (split + 1) // splits):
                start = block * TILE
                count = min(TILE, keys[TOKENS] - start)
                key = keys[ADDRESS] + row * keys[ROW] + head * keys[HEAD] + start * keys[TOKEN]
                value = values[ADDRESS] + row * values[ROW] + head * values[HEAD] + start * values[TOKEN]
                score_tile(key, keys, own, rows, count, score)
                hide(score, rows, mask and mask + row * mask_row + head * mask_head + before + start, count)
                if soften(score, rows, top, mass, total, bias, peak):
                    mix_tile(value, values, score, rows, count, total)
            before += keys[TOKENS]
        normalise(total, top, mass, rows, out + 4 * index * rows * width, lse + 4 * index * rows)


@njit(**JIT)
def score_tile(key: int, side: Any, query: int, rows: int, count: int, score: Any) -> None:
    """score (rows, 64): four tokens at a time; a ragged end is scored token by token."""
    rank, step, out, wide = side[RANK], side[TOKEN], score.ctypes.data, 4 * TILE
    whole = count // 4 * 4
    for row in range(0, rows, 3):
        at, to, some = query + 4 * row * rank, out + row * wide, min(3, rows - row)
        for token in range(0, whole, 4):
            float_ops.exact_scores(key + token * step, at, to + 4 * token, some, rank, step, 4 * rank, wide)
    for token in range(whole, count):
        x = floats(key + token * step, rank)
        for r in range(rows):
            q, dot = floats(query + 4 * r * rank, rank), _F(0)
            for i in range(rank):
                dot += q[i] * x[i]
            score[r, token] = dot


@njit(**JIT)
def mix_tile(value: int, side: Any, p: Any, rows: int, count: int, total: Any) -> None:
    """Add Σ p · values of the tile to ``total`` (rows, components)."""
    rank, step, weights, base = side[RANK], side[TOKEN], p.ctypes.data, total.ctypes.data
    for row in range(0, rows, 3):
        at, some = weights + 4 * row * TILE, min(3, rows - row)
        for column in range(0, rank, 4 * vectors.LANES):
            to, rest = base + 4 * (row * rank + column), rank - column
            float_ops.exact_mix(value + 4 * column, at, to, some, count, step, 4 * TILE, 4 * rank, rest)


@njit(**JIT)
def normalise(total: Any, top: Any, mass: Any, rows: int, out: int, lse: int) -> None:
    """Output (rows, rank) and log-sum-exp (rows,) of one unit."""
    ends, rank = floats(lse, rows), total.shape[1]
    for row in range(rows):
        summed = mass[row].sum()
        ends[row] = top[row] + np.log(summed)
        own = floats(out + 4 * row * rank, rank)
        for i in range(rank):
            own[i] = total[row, i] / summed
