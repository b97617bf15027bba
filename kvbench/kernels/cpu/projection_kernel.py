"""Before a unit's first tile and after its last: queries into the latents and to bytes, sums to outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import float_ops, vectors
from kvbench.kernels.cpu.memory import JIT, copy_words, floats, halves, longs
from kvbench.kernels.cpu.records import (
    BASIS,
    BASIS_GROUP,
    BASIS_ROW,
    CHANNELS,
    DIM,
    HALVES,
    MEAN,
    MEAN_GROUP,
    PER_CHANNEL_GROUP,
    PER_HEAD,
    RANK,
    SOURCES,
    WIDTH,
    WORTH,
)

_F = np.float32
LOW = _F(1 / 254)
"""What the second byte of a rounded query is worth, in units of the first."""


@njit(**JIT)
def wide_size(side: Any) -> Any:
    """fp32 numbers that one head's decoder and mean take where they are stored in fp16."""
    return (side[WIDTH] + 1) * side[DIM] if side[HALVES] else 0


@njit(**JIT)
def head_basis(side: Any, head: int, first: int, widened: Any) -> Any:
    """Addresses of decoder and mean in fp32 from component ``first`` of a state, and bytes between decoder rows.

    What is stored in fp16 is copied to ``widened``: a few vector conversions beside a whole tile of tokens.
    """
    basis, mean = head * side[BASIS_GROUP] + first, head * side[MEAN_GROUP] + first
    if not side[HALVES]:
        return side[BASIS] + 4 * basis, side[MEAN] + 4 * mean, 4 * side[BASIS_ROW]
    width, dim, to = side[WIDTH], side[DIM], widened.ctypes.data
    for component in range(width):
        widen(side[BASIS] + 2 * (basis + component * side[BASIS_ROW]), to + 4 * component * dim, dim)
    widen(side[MEAN] + 2 * mean, to + 4 * width * dim, dim)
    return to, to + 4 * width * dim, 4 * dim


@njit(**JIT)
def widen(source: int, target: int, count: int) -> None:
    """``count`` fp16 numbers as fp32."""
    narrow, wide = halves(source, count), floats(target, count)
    for i in range(count):
        wide[i] = vectors.half_to_float(narrow[i])


@njit(**JIT)
def into_latents(query: int, side: Any, head: int, out: Any, shift: Any, widened: Any) -> None:
    """Queries (rows, dim) → (rows, width): with keys z D + μ, q · k = (D q) · z + q · μ, and ``shift`` is q · μ."""
    width, dim, basis, mean, step = side[WIDTH], side[DIM], 0, 0, 0
    for row in range(out.shape[0]):
        own, q = out.ctypes.data + 4 * row * width, query + 4 * row * dim
        if not side[BASIS]:
            copy_words(q, own, width)
            shift[row] = _F(0)
            continue
        if row % side[PER_HEAD] == 0:
            basis, mean, step = head_basis(side, head, row // side[PER_HEAD] * dim, widened)
        whole = width // 4 * 4
        for component in range(0, whole, 4):
            float_ops.exact_scores(basis + component * step, q, own + 4 * component, 1, dim, step, 0, 0)
        for component in range(whole, width):
            out[row, component] = dot(basis + component * step, q, dim)
        shift[row] = dot(mean, q, dim)


@njit(**JIT)
def dot(x: int, y: int, count: int) -> Any:
    """x · y of ``count`` fp32 numbers each."""
    a, b, total = floats(x, count), floats(y, count), _F(0)
    for i in range(count):
        total += a[i] * b[i]
    return total


@njit(**JIT)
def pick(query: int, scaling: Any, side: Any, out: Any) -> None:
    """One row of the query as the unpacked bytes meet it: components by column, times what a byte is worth."""
    own, rank = floats(query, side[WIDTH]), side[RANK]
    if side[SOURCES]:
        sources = longs(side[SOURCES], rank)
        for i in range(rank):
            out[i] = own[sources[i]] * scaling
    else:
        for i in range(rank):
            out[i] = own[i] * scaling
    if side[WORTH]:
        worth = floats(side[WORTH], rank)
        for i in range(rank):
            out[i] *= worth[i]


@njit(**JIT)
def round_query(query: Any, scaling: Any, rows: int, keys: Any, own: Any, sides: Any, unit: Any, summed: Any) -> None:
    """Each row's query to two signed bytes per component and channel group, in the order that dot products read."""
    for row in range(rows):
        pick(query.ctypes.data + 4 * row * keys[WIDTH], scaling, keys, own)
        for channel in range(keys[CHANNELS]):
            first = channel * keys[PER_CHANNEL_GROUP]
            count = min(keys[PER_CHANNEL_GROUP], keys[RANK] - first)
            most = _F(1e-30)
            for i in range(count):
                most = max(most, abs(own[first + i]))
            total = _F(0)
            for i in range(count):
                y = own[first + i] * (_F(127) / most)
                high = np.int32(y + _F(128.5)) - 128
                low = np.int32((y - _F(high)) * _F(254) + _F(128.5)) - 128
                total += _F(high) + _F(low) * LOW
                # 16 components of one token, then the same for three more tokens, 4 components at a time
                place = i // 16 * 64 + i % 16 // 4 * 16 + i % 4
                for token in range(4):
                    sides[channel, 2 * row, place + 4 * token] = np.int8(high)
                    sides[channel, 2 * row + 1, place + 4 * token] = np.int8(low)
            unit[channel, row] = most / _F(127)
            summed[channel, row] = total * most / _F(127)


@njit(**JIT)
def finish(total: Any, bias: Any, top: Any, mass: Any, side: Any, shift: Any, scaling: Any, out: Any, lse: int) -> None:
    """Normalise: out (rows, width) by component, and the log-sum-exp (rows,) of one unit."""
    rows, width = out.shape
    ends, rank, lanes = floats(lse, rows), side[RANK], vectors.LANES
    for row in range(rows):
        summed = mass[row].sum()
        ends[row] = top[row] + np.log(summed) + shift[row] * scaling
        for channel in range(side[CHANNELS]):
            first = channel * side[PER_CHANNEL_GROUP]
            offset = bias[row, channel * lanes : (channel + 1) * lanes].sum()
            for i in range(first, min(first + side[PER_CHANNEL_GROUP], rank)):
                total[row, i] = (total[row, i] + offset) / summed
        if side[WORTH]:
            worth = floats(side[WORTH], rank)
            for i in range(rank):
                total[row, i] *= worth[i]
        if side[SOURCES]:
            sources = longs(side[SOURCES], rank)
            for i in range(width):
                out[row, i] = _F(0)
            for i in range(rank):
                out[row, sources[i]] += total[row, i]
        else:
            for i in range(width):
                out[row, i] = total[row, i]


@njit(**JIT)
def from_latents(latents: Any, side: Any, head: int, out: int, widened: Any) -> None:
    """Sums of latents (rows, width) → outputs (rows, dim)."""
    width, dim, basis, mean, step = side[WIDTH], side[DIM], 0, 0, 0
    for row in range(latents.shape[0]):
        own, to = latents.ctypes.data + 4 * row * width, out + 4 * row * dim
        if not side[BASIS]:
            copy_words(own, to, width)
            continue
        if row % side[PER_HEAD] == 0:
            basis, mean, step = head_basis(side, head, row // side[PER_HEAD] * dim, widened)
        copy_words(mean, to, dim)
        for part in range(0, dim, 4 * vectors.LANES):
            float_ops.exact_mix(basis + 4 * part, own, to + 4 * part, 1, width, step, 0, 0, dim - part)
