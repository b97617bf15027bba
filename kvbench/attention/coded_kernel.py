"""Decode attention over packed codes on the CPU: one pass, online softmax, nothing expanded beyond a tile of 64 tokens.

A stored value is ``a · u + b`` with a code or level ``u`` of at most 8 bits and ``a`` ≥ 0, ``b`` constant or one pair
per token and channel group. Scores and outputs are integer dot products of ``u`` with queries and weights rounded to
two bytes each, so their error stays near 1e-4; ``a`` and ``b`` enter in fp32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.attention import byte_ops, float_ops, unpack_kernel, vectors
from kvbench.attention.tiles import (
    JIT,
    LOWEST,
    TILE,
    copy_words,
    exponential,
    fetch_ahead,
    floats,
    halves,
    longs,
    octets,
)
from kvbench.attention.vectors import as_float

# What an int64 vector `side` says about stored keys or values. Strides: bytes for codes, elements for scales.
CODES, ROW, HEAD, GROUP_BYTES, RANK, PADDED = 0, 1, 2, 3, 4, 5
SCALE, ZERO, SCALE_ROW, SCALE_HEAD, CHANNELS, PER_CHANNEL_GROUP = 6, 7, 8, 9, 10, 11
DIRECT, NIBBLES, FLIP, AFFINE, UNPACKING, WIDTH, SOURCES, WORTH = 12, 13, 14, 15, 16, 17, 18, 19
BASIS, BASIS_GROUP, BASIS_ROW, MEAN, MEAN_GROUP, DIM, PER_HEAD = 20, 21, 22, 23, 24, 25, 26
FIELDS = 27

AHEAD = 2 * TILE
"""Tokens that scales are asked for in advance."""

_F = np.float32
_LOW = _F(1 / 254)
"""What the second byte of a rounded query is worth, in units of the first."""

_MOST = _F(65534)
"""The largest weight of a tile, as two bytes; one less than they hold, for exponentials that round up."""

_LOG2_E = _F(np.log2(np.e))

_NEGLIGIBLE = _F(-34)
"""Weights so far below the largest (2^-34) count for nothing in fp32: the values of a tile of them are not read."""


@njit(**JIT)
def attend_coded(
    unit: int,
    last: int,
    splits: int,
    tokens: int,
    heads: int,
    rows: int,
    query: int,
    scaling: Any,
    keys: Any,
    values: Any,
    mask: int,
    mask_row: int,
    mask_head: int,
    out: int,
    lse: int,
) -> None:
    """Units [unit, last) of batch · heads · splits. ``query`` (batch, heads, rows, key dim) fp32.

    ``out`` (units, rows, value dim) and ``lse`` (units, rows) receive every split's normalised output.
    """
    key_tile = np.empty(TILE * keys[PADDED] + 256, np.uint8)
    value_tile = np.empty(TILE * values[PADDED] + 256, np.uint8)
    sides = np.zeros((keys[CHANNELS], 2 * rows, 4 * keys[PADDED]), np.int8)
    query_unit, query_sum = np.empty((keys[CHANNELS], rows), _F), np.empty((keys[CHANNELS], rows), _F)
    affines = np.empty((2, TILE), _F)
    score, peak, top, units = np.empty((rows, TILE), _F), np.empty(rows, _F), np.empty(rows, _F), np.empty(rows, _F)
    total, bias = np.empty((rows, values[PADDED]), _F), np.empty((rows, vectors.LANES * values[CHANNELS]), _F)
    mass = np.empty((rows, vectors.LANES), _F)
    picked, shift = np.empty(keys[PADDED], _F), np.empty(rows, _F)
    latents, mixed = np.empty((rows, keys[WIDTH]), _F), np.empty((rows, values[WIDTH]), _F)
    dots, rounded = np.empty((6, TILE), np.int32), np.empty((6, TILE), np.uint8)
    blocks = (tokens + TILE - 1) // TILE
    for index in range(unit, last):
        pair, split = index // splits, index % splits
        row, head = pair // heads, pair % heads
        into_latents(query + 4 * pair * rows * keys[DIM], keys, head, latents, shift)
        round_query(latents, scaling, rows, keys, picked, sides, query_unit, query_sum)
        begin(top, mass, total, bias)
        affine = affines.ctypes.data
        for block in range(blocks * split // splits, blocks * (split + 1) // splits):
            start = block * TILE
            count = min(TILE, tokens - start)
            fetch_scales(keys, row, head, start + AHEAD)
            fetch_scales(values, row, head, start + AHEAD)
            tile = stored_tile(keys, row, head, start, count, key_tile.ctypes.data)
            fill(score, _F(0))
            for channel in range(keys[CHANNELS]):
                read_affine(keys, row, head, start, count, channel, affine)
                score_tile(tile, keys, count, channel, sides, rows, query_unit, query_sum, affine, dots, score)
            hide(score, rows, mask and mask + row * mask_row + head * mask_head + start, count)
            if soften(score, rows, top, mass, total, bias, peak):
                tile = stored_tile(values, row, head, start, count, value_tile.ctypes.data)
                for channel in range(values[CHANNELS]):
                    read_affine(values, row, head, start, count, channel, affine)
                    mix_tile(tile, values, count, channel, score, rows, peak, affine, rounded, dots, units, total, bias)
        finish(total, bias, top, mass, values, shift, scaling, mixed, lse + 4 * index * rows)
        from_latents(mixed, values, head, out + 4 * index * rows * values[DIM])


@njit(**JIT)
def begin(top: Any, mass: Any, total: Any, bias: Any) -> None:
    """Nothing seen yet."""
    top[:] = LOWEST
    fill(mass, _F(0))
    fill(total, _F(0))
    fill(bias, _F(0))


@njit(**JIT)
def fill(x: Any, value: Any) -> None:
    """x[…] = value, without the slice that numba would count references for."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[i, j] = value


@njit(**JIT)
def into_latents(query: int, side: Any, head: int, out: Any, shift: Any) -> None:
    """Queries (rows, dim) → (rows, width): with keys z D + μ, q · k = (D q) · z + q · μ, and ``shift`` is q · μ."""
    width, dim, step = side[WIDTH], side[DIM], 4 * side[BASIS_ROW]
    for row in range(out.shape[0]):
        own, q = out.ctypes.data + 4 * row * width, query + 4 * row * dim
        if not side[BASIS]:
            copy_words(q, own, width)
            shift[row] = _F(0)
            continue
        first = row // side[PER_HEAD] * dim
        basis = side[BASIS] + 4 * (head * side[BASIS_GROUP] + first)
        whole = width // 4 * 4
        for component in range(0, whole, 4):
            float_ops.exact_scores(basis + component * step, q, own + 4 * component, 1, dim, step, 0, 0)
        for component in range(whole, width):
            out[row, component] = dot(basis + component * step, q, dim)
        shift[row] = dot(side[MEAN] + 4 * (head * side[MEAN_GROUP] + first), q, dim)


@njit(**JIT)
def dot(x: int, y: int, count: int) -> Any:
    """x · y of ``count`` fp32 numbers each."""
    a, b, total = floats(x, count), floats(y, count), _F(0)
    for i in range(count):
        total += a[i] * b[i]
    return total


@njit(**JIT)
def from_latents(latents: Any, side: Any, head: int, out: int) -> None:
    """Sums of latents (rows, width) → outputs (rows, dim)."""
    width, dim = side[WIDTH], side[DIM]
    for row in range(latents.shape[0]):
        own, to = latents.ctypes.data + 4 * row * width, out + 4 * row * dim
        if not side[BASIS]:
            copy_words(own, to, width)
            continue
        first = row // side[PER_HEAD] * dim
        copy_words(side[MEAN] + 4 * (head * side[MEAN_GROUP] + first), to, dim)
        basis = side[BASIS] + 4 * (head * side[BASIS_GROUP] + first)
        for part in range(0, dim, 4 * vectors.LANES):
            float_ops.exact_mix(basis + 4 * part, own, to + 4 * part, 1, width, 4 * side[BASIS_ROW], 0, 0, dim - part)


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
                total += _F(high) + _F(low) * _LOW
                # 16 components of one token, then the same for three more tokens, 4 components at a time
                place = i // 16 * 64 + i % 16 // 4 * 16 + i % 4
                for token in range(4):
                    sides[channel, 2 * row, place + 4 * token] = np.int8(high)
                    sides[channel, 2 * row + 1, place + 4 * token] = np.int8(low)
            unit[channel, row] = most / _F(127)
            summed[channel, row] = total * most / _F(127)


@njit(**JIT)
def code_address(side: Any, row: int, head: int, start: int) -> int:
    """Where the codes from token ``start`` on lie."""
    return side[CODES] + row * side[ROW] + head * side[HEAD] + start // 8 * side[GROUP_BYTES]


@njit(**JIT)
def fetch_scales(side: Any, row: int, head: int, start: int) -> None:
    """Ask for a tile's scales: streams so short that the hardware does not foresee them, as it does codes."""
    if side[SCALE]:
        offset = 2 * (row * side[SCALE_ROW] + head * side[SCALE_HEAD] + start * side[CHANNELS])
        fetch_ahead(side[SCALE] + offset, 2 * TILE * side[CHANNELS])
        if side[ZERO]:
            fetch_ahead(side[ZERO] + offset, 2 * TILE * side[CHANNELS])


@njit(**JIT)
def stored_tile(side: Any, row: int, head: int, start: int, count: int, buffer: int) -> int:
    """The address of ``count`` tokens' bytes in quads: the stored codes as they are, or unpacked to ``buffer``."""
    codes = code_address(side, row, head, start)
    if side[DIRECT] and count == TILE:
        return codes
    fetch_ahead(codes + TILE // 8 * side[GROUP_BYTES], TILE // 8 * side[GROUP_BYTES])
    how = longs(side[UNPACKING], unpack_kernel.FIELDS)
    unpack_kernel.unpack_tile(codes, side[GROUP_BYTES], (count + 7) // 8, how, buffer, side[PADDED])
    return buffer


@njit(**JIT)
def read_affine(side: Any, row: int, head: int, start: int, count: int, channel: int, out: int) -> None:
    """Scales, then zeros of the tile's tokens in one channel group: two rows of 64 at ``out``."""
    zero, constant = out + 4 * TILE, floats(side[AFFINE], 2)
    if not side[SCALE]:
        float_ops.fill_row(out, constant[0])
        float_ops.fill_row(zero, constant[1])
        return
    offset = 2 * (row * side[SCALE_ROW] + head * side[SCALE_HEAD] + start * side[CHANNELS] + channel)
    read_halves(side[SCALE] + offset, count, side[CHANNELS], out)
    if side[ZERO]:
        read_halves(side[ZERO] + offset, count, side[CHANNELS], zero)
    else:
        float_ops.scale_row(out, constant[1], zero)
        float_ops.scale_row(out, constant[0], out)


@njit(**JIT)
def read_halves(address: int, count: int, stride: int, out: int) -> None:
    """``count`` fp16 numbers, ``stride`` apart, as 64 of fp32; zeros beyond."""
    if count == TILE and stride == 1:
        float_ops.from_halves(address, out)
        return
    x, y = halves(address, count * stride), floats(out, TILE)
    for t in range(TILE):
        y[t] = vectors.half_to_float(x[t * stride]) if t < count else _F(0)


@njit(**JIT)
def score_tile(
    tile: int,
    side: Any,
    count: int,
    channel: int,
    sides: Any,
    rows: int,
    unit: Any,
    summed: Any,
    affine: int,
    dots: Any,
    score: Any,
) -> None:
    """Add the scores of one channel group: scale · (codes · query) + zero · Σ query."""
    packed, group_bytes, first, ahead = form(side, count, channel)
    wide = min(side[PER_CHANNEL_GROUP], side[PADDED] - channel * side[PER_CHANNEL_GROUP]) // vectors.LANES
    step, codes, to = sides.strides[1], tile + first, dots.ctypes.data
    for row in range(0, rows, 3):
        some = min(3, rows - row)
        at = sides.ctypes.data + channel * sides.strides[0] + 2 * row * step
        for part in range(TILE // 16):
            byte_ops.scores(
                codes + 2 * part * group_bytes,
                at,
                to + 64 * part,
                some,
                wide,
                group_bytes,
                step,
                4 * TILE,
                packed,
                ahead,
            )
        for r in range(some):
            u, o = unit[channel, row + r], summed[channel, row + r]
            own = score.ctypes.data + 4 * TILE * (row + r)
            float_ops.add_scores(to + 8 * TILE * r, _LOW, u, o, affine, affine + 4 * TILE, own)


@njit(**JIT)
def form(side: Any, count: int, channel: int) -> Any:
    """Whether a tile is nibbles, its bytes per 8 tokens, where a channel group begins, and how far on the next tile."""
    group_bytes, first = 8 * side[PADDED], 4 * channel * side[PER_CHANNEL_GROUP]
    if side[DIRECT] and count == TILE:
        group_bytes = side[GROUP_BYTES]
        return side[NIBBLES], group_bytes, first, TILE // 8 * group_bytes
    return 0, group_bytes, first, 0


@njit(**JIT)
def hide(score: Any, rows: int, mask: int, count: int) -> None:
    """Scores of masked tokens, and beyond the ``count`` of a tile, as low as they go."""
    if mask:
        seen = octets(mask, count)
        for row in range(rows):
            for t in range(count):
                if not seen[t]:
                    score[row, t] = LOWEST
    for row in range(rows):
        for t in range(count, TILE):
            score[row, t] = LOWEST


@njit(**JIT)
def soften(score: Any, rows: int, top: Any, mass: Any, total: Any, bias: Any, peak: Any) -> bool:
    """Online softmax: scores become weights e^score relative to the largest so far, to which sums are brought.

    ``peak`` receives a power of two that no weight of a row exceeds, at most twice the largest. False if none counts.
    """
    counts = False
    for row in range(rows):
        own = score.ctypes.data + 4 * TILE * row
        most = float_ops.largest(own, LOWEST)
        if most > top[row]:
            c = exponential(top[row] - most)
            top[row] = most
            rescale(mass, row, c)
            rescale(total, row, c)
            rescale(bias, row, c)
        below = (most - top[row]) * _LOG2_E
        peak[row] = as_float(np.int32(127 + np.int32(max(below, _NEGLIGIBLE))) << np.int32(23))
        counts = counts or below > _NEGLIGIBLE
        float_ops.exponentials(own, top[row], mass.ctypes.data + 4 * vectors.LANES * row)
    return counts


@njit(**JIT)
def rescale(sums: Any, row: int, c: Any) -> None:
    """sums[row] *= c."""
    for i in range(sums.shape[1]):
        sums[row, i] *= c


@njit(**JIT)
def mix_tile(
    tile: int,
    side: Any,
    count: int,
    channel: int,
    p: Any,
    rows: int,
    peak: Any,
    affine: int,
    rounded: Any,
    mixed: Any,
    unit: Any,
    total: Any,
    bias: Any,
) -> None:
    """Add Σ p · value of one channel group: Σ p · scale · codes to ``total``, Σ p · zero to ``bias``, in parts."""
    packed, group_bytes, start, ahead = form(side, count, channel)
    first = channel * side[PER_CHANNEL_GROUP]
    stop = first + min(side[PER_CHANNEL_GROUP], side[PADDED] - first)
    largest = max(float_ops.largest(affine, _F(1e-30)), _F(1e-30))
    to, wide, lift = mixed.ctypes.data, mixed.strides[0], _F(128) if side[FLIP] else _F(0)
    for row in range(0, rows, 3):
        some, weights = min(3, rows - row), rounded.ctypes.data
        for r in range(row, row + some):
            own, high = p.ctypes.data + 4 * TILE * r, weights + 2 * (r - row) * TILE
            unit[r] = largest * peak[r] / _MOST
            float_ops.round_weights(own, affine, _F(1) / unit[r], high, high + TILE)
            offset = bias.ctypes.data + 4 * (vectors.LANES * channel + r * bias.shape[1])
            float_ops.weighted_sum(own, affine + 4 * TILE, affine, lift, offset)
        column = first
        while column < stop:
            left = (stop - column) // vectors.LANES
            columns = 4 if left >= 4 else 2 if left >= 2 else 1
            codes = tile + start + 4 * (column - first)
            byte_ops.mix(
                codes, weights, to, some, columns, TILE // 8, group_bytes, TILE, wide, packed, side[FLIP], ahead
            )
            for r in range(row, row + some):
                at = total.ctypes.data + 4 * (r * total.shape[1] + column)
                float_ops.add_mixed(to + 2 * (r - row) * wide, wide, unit[r], at, columns)
            column += columns * vectors.LANES


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
