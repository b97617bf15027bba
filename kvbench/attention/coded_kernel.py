"""Decode attention over packed codes on the CPU: one pass, online softmax, nothing expanded beyond a tile of 64 tokens.

A stored value is ``a · u + b`` with a code or level ``u`` of at most 8 bits and ``a``, ``b`` constant or one pair per
token and channel group. Scores and outputs are integer dot products of ``u`` with queries and weights rounded to two
bytes each (15 bits and a sign), so their error stays near 1e-4; ``a`` and ``b`` enter in fp32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.attention import byte_ops, float_ops, vectors
from kvbench.attention.tiles import (
    JIT,
    LOWEST,
    TILE,
    exponential,
    fetch_ahead,
    floats,
    halves,
    octets,
    unpack_tile,
)

# What an int64 vector `side` says about stored keys or values. Strides: bytes for codes, elements for scales.
CODES, ROW, HEAD, GROUP_BYTES, RANK, PADDED = 0, 1, 2, 3, 4, 5
SCALE, ZERO, SCALE_ROW, SCALE_HEAD, CHANNELS, PER_CHANNEL_GROUP, DIRECT, LOOKED_UP = 6, 7, 8, 9, 10, 11, 12, 13
FIELDS = 14

_F = np.float32
_LOW = _F(1 / 254)
"""What the second byte of a rounded number is worth, in units of the first."""


@njit(**JIT)
def attend_coded(
    unit: int,
    last: int,
    splits: int,
    tokens: int,
    heads: int,
    rows: int,
    query: int,
    keys: Any,
    key_runs: Any,
    key_levels: Any,
    key_affine: Any,
    values: Any,
    value_runs: Any,
    value_levels: Any,
    value_affine: Any,
    mask: int,
    mask_row: int,
    mask_head: int,
    out: int,
    lse: int,
) -> None:
    """Units [unit, last) of batch · heads · splits. ``query`` (batch, heads, rows, rank) fp32, scaled already.

    ``out`` (units, rows, value rank) and ``lse`` (units, rows) receive every split's normalised output.
    """
    key_tile = np.empty(TILE * keys[PADDED] + 256, np.uint8)
    value_tile = np.empty(TILE * values[PADDED] + 256, np.uint8)
    sides = np.zeros((keys[CHANNELS], 2 * rows, 4 * keys[PADDED]), np.int8)
    query_unit, query_sum = np.empty((keys[CHANNELS], rows), _F), np.empty((keys[CHANNELS], rows), _F)
    dots, rounded = np.empty((2 * rows, TILE), np.int32), np.empty((2 * rows, TILE), np.int8)
    score, weight_unit = np.empty((rows, TILE), _F), np.empty(rows, _F)
    sums = np.empty(3, _F)
    scale, zero = np.empty(TILE, _F), np.empty(TILE, _F)
    mixed, total = np.empty((2 * rows, values[PADDED]), np.int32), np.empty((rows, values[PADDED]), _F)
    bias, top, mass = np.empty((rows, values[CHANNELS]), _F), np.empty(rows, _F), np.empty(rows, _F)
    blocks = (tokens + TILE - 1) // TILE
    for index in range(unit, last):
        pair, split = index // splits, index % splits
        row, head = pair // heads, pair % heads
        round_query(query + 4 * pair * rows * keys[RANK], rows, keys, sides, query_unit, query_sum)
        fill(total, _F(0))
        fill(bias, _F(0))
        top[:], mass[:] = LOWEST, _F(0)
        for block in range(blocks * split // splits, blocks * (split + 1) // splits):
            start = block * TILE
            count = min(TILE, tokens - start)
            fetch_scales(keys, row, head, start + TILE)
            fetch_scales(values, row, head, start + TILE)
            tile = stored_tile(keys, row, head, start, count, key_runs, key_levels, key_tile.ctypes.data)
            fill(score, _F(0))
            for channel in range(keys[CHANNELS]):
                read_affine(keys, key_affine, row, head, start, count, channel, scale, zero)
                dot_rows(tile, keys, channel, sides, rows, dots)
                add_scores(dots, rows, query_unit, query_sum, channel, scale, zero, score)
            if mask:
                hide(score, rows, mask + row * mask_row + head * mask_head + start, count)
            if count < TILE:
                cut(score, rows, count)
            soften(score, rows, top, mass, total, bias)
            tile = stored_tile(values, row, head, start, count, value_runs, value_levels, value_tile.ctypes.data)
            for channel in range(values[CHANNELS]):
                read_affine(values, value_affine, row, head, start, count, channel, scale, zero)
                weigh(score, rows, scale, zero, value_affine[2], rounded, sums, weight_unit, bias, channel)
                mix_rows(tile, values, channel, rounded, rows, mixed, weight_unit, total)
        finish(total, bias, top, mass, rows, values, out + 4 * index * rows * values[RANK], lse + 4 * index * rows)


@njit(**JIT)
def fill(x: Any, value: Any) -> None:
    """x[…] = value, without the slice that numba would count references for."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[i, j] = value


@njit(**JIT)
def round_query(query: int, rows: int, keys: Any, sides: Any, unit: Any, summed: Any) -> None:
    """Each row's query to two signed bytes per component and channel group, in the order that dot products read."""
    for channel in range(keys[CHANNELS]):
        first = channel * keys[PER_CHANNEL_GROUP]
        count = min(keys[PER_CHANNEL_GROUP], keys[RANK] - first)
        for row in range(rows):
            own = floats(query + 4 * (row * keys[RANK] + first), count)
            most = _F(1e-30)
            for i in range(count):
                most = max(most, abs(own[i]))
            total = _F(0)
            for i in range(count):
                y = own[i] * (_F(127) / most)
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
def stored_tile(side: Any, row: int, head: int, start: int, count: int, runs: Any, levels: Any, buffer: int) -> int:
    """The address of ``count`` tokens' bytes in quads: the stored codes as they are, or unpacked to ``buffer``."""
    codes = code_address(side, row, head, start)
    if side[DIRECT] and count == TILE:
        return codes
    groups = (count + 7) // 8
    unpack_tile(codes, side[GROUP_BYTES], groups, runs, levels, side[LOOKED_UP], buffer, side[PADDED])
    return buffer


@njit(**JIT)
def read_affine(
    side: Any, constant: Any, row: int, head: int, start: int, count: int, channel: int, scale: Any, zero: Any
) -> None:
    """``scale`` and ``zero`` (64,) of the tile's tokens in one channel group."""
    if not side[SCALE]:
        for t in range(TILE):
            scale[t] = constant[0]
            zero[t] = constant[1]
        return
    offset = 2 * (row * side[SCALE_ROW] + head * side[SCALE_HEAD] + start * side[CHANNELS] + channel)
    from_halves(side[SCALE] + offset, count, side[CHANNELS], scale)
    if side[ZERO]:
        from_halves(side[ZERO] + offset, count, side[CHANNELS], zero)
    else:
        for t in range(TILE):
            zero[t] = scale[t] * constant[1]
            scale[t] *= constant[0]
    for t in range(count, TILE):
        scale[t] = _F(0)
        zero[t] = _F(0)


@njit(**JIT)
def from_halves(address: int, count: int, stride: int, out: Any) -> None:
    """fp16 numbers, ``stride`` apart, to fp32."""
    if count == TILE and stride == 1:  # the usual case, with a length the compiler knows
        x = halves(address, TILE)
        for t in range(TILE):
            out[t] = vectors.half_to_float(x[t])
    else:
        x = halves(address, count * stride)
        for t in range(count):
            out[t] = vectors.half_to_float(x[t * stride])


@njit(**JIT)
def dot_rows(tile: int, side: Any, channel: int, sides: Any, rows: int, dots: Any) -> None:
    """dots (2 · rows, 64): integer products of every row's two bytes with the codes of one channel group."""
    first, quad = channel * side[PER_CHANNEL_GROUP], 4 * side[PADDED]
    wide = min(side[PER_CHANNEL_GROUP], side[PADDED] - first) // vectors.LANES
    query, step, base = sides.ctypes.data + channel * sides.strides[0], sides.strides[1], dots.ctypes.data
    for part in range(TILE // 16):
        codes = tile + 4 * first + part * 4 * quad
        out = base + part * 64
        row = 0
        while row < rows:
            left = rows - row
            at, to = query + 2 * row * step, out + 2 * row * 4 * TILE
            if left >= 3:
                byte_ops.scores_6(codes, at, to, wide, quad, step, 4 * TILE)
            elif left == 2:
                byte_ops.scores_4(codes, at, to, wide, quad, step, 4 * TILE)
            else:
                byte_ops.scores_2(codes, at, to, wide, quad, step, 4 * TILE)
            row += min(left, 3)


@njit(**JIT)
def add_scores(dots: Any, rows: int, unit: Any, summed: Any, channel: int, scale: Any, zero: Any, score: Any) -> None:
    """Scores of one channel group: scale · (codes · query) + zero · Σ query."""
    for row in range(rows):
        u, o = unit[channel, row], summed[channel, row]
        for t in range(TILE):
            dot = _F(dots[2 * row, t]) + _F(dots[2 * row + 1, t]) * _LOW
            score[row, t] += dot * u * scale[t] + o * zero[t]


@njit(**JIT)
def hide(score: Any, rows: int, mask: int, count: int) -> None:
    """Scores of masked tokens as low as they go."""
    seen = octets(mask, count)
    for row in range(rows):
        for t in range(count):
            if not seen[t]:
                score[row, t] = LOWEST


@njit(**JIT)
def cut(score: Any, rows: int, count: int) -> None:
    """Tokens beyond the end, the same."""
    for row in range(rows):
        for t in range(count, TILE):
            score[row, t] = LOWEST


@njit(**JIT)
def soften(score: Any, rows: int, top: Any, mass: Any, total: Any, bias: Any) -> None:
    """Online softmax: scores become weights relative to the largest so far, and earlier sums are brought to it."""
    base = score.ctypes.data
    for row in range(rows):
        own = base + 4 * TILE * row
        most = float_ops.largest(own, top[row])
        if most > top[row]:
            c = exponential(top[row] - most)
            top[row] = most
            mass[row] *= c
            for i in range(total.shape[1]):
                total[row, i] *= c
            for i in range(bias.shape[1]):
                bias[row, i] *= c
        mass[row] += float_ops.exponentials(own, most)


@njit(**JIT)
def weigh(
    p: Any,
    rows: int,
    scale: Any,
    zero: Any,
    middle: Any,
    rounded: Any,
    sums: Any,
    unit: Any,
    bias: Any,
    channel: int,
) -> None:
    """Weights p · scale as two bytes each; what codes around ``middle`` do not say goes to ``bias``.

    Weights are at most the tile's largest scale, which is what the bytes are relative to.
    """
    most = max(float_ops.largest(scale.ctypes.data, _F(1e-30)), _F(1e-30))
    for t in range(TILE):
        zero[t] += middle * scale[t]
    for row in range(rows):
        high = rounded.ctypes.data + 2 * row * TILE
        float_ops.round_weights(
            p.ctypes.data + 4 * TILE * row,
            scale.ctypes.data,
            zero.ctypes.data,
            high,
            high + TILE,
            _F(127) / most,
            sums.ctypes.data,
        )
        unit[row] = most / _F(127)
        bias[row, channel] += sums[0] - middle * unit[row] * (sums[1] + sums[2] * _LOW)


@njit(**JIT)
def mix_rows(tile: int, side: Any, channel: int, rounded: Any, rows: int, mixed: Any, unit: Any, total: Any) -> None:
    """Add Σ weight · codes of one channel group to ``total`` (rows, components)."""
    first, quad = channel * side[PER_CHANNEL_GROUP], 4 * side[PADDED]
    stop = first + min(side[PER_CHANNEL_GROUP], side[PADDED] - first)
    weights, base, wide = rounded.ctypes.data, mixed.ctypes.data, mixed.strides[0]
    row = 0
    while row < rows:
        left, column = rows - row, first
        at = weights + 2 * row * TILE
        while column < stop:
            codes, to = tile + 4 * column, base + 2 * row * wide + 4 * column
            if stop - column >= 4 * vectors.LANES:
                if left >= 3:
                    byte_ops.mix_6(codes, at, to, TILE // 4, quad, TILE, wide)
                elif left == 2:
                    byte_ops.mix_4(codes, at, to, TILE // 4, quad, TILE, wide)
                else:
                    byte_ops.mix_2(codes, at, to, TILE // 4, quad, TILE, wide)
                column += 4 * vectors.LANES
            else:
                if left >= 3:
                    byte_ops.mix_6_narrow(codes, at, to, TILE // 4, quad, TILE, wide)
                elif left == 2:
                    byte_ops.mix_4_narrow(codes, at, to, TILE // 4, quad, TILE, wide)
                else:
                    byte_ops.mix_2_narrow(codes, at, to, TILE // 4, quad, TILE, wide)
                column += vectors.LANES
        row += min(left, 3)
    for row in range(rows):
        u = unit[row]
        for i in range(first, stop):
            total[row, i] += (_F(mixed[2 * row, i]) + _F(mixed[2 * row + 1, i]) * _LOW) * u


@njit(**JIT)
def finish(total: Any, bias: Any, top: Any, mass: Any, rows: int, side: Any, out: int, lse: int) -> None:
    """Normalise: output (rows, rank) and log-sum-exp (rows,) of one unit."""
    ends, rank = floats(lse, rows), side[RANK]
    for row in range(rows):
        ends[row] = top[row] + np.log(mass[row])
        own = floats(out + 4 * row * rank, rank)
        for i in range(rank):
            own[i] = (total[row, i] + bias[row, i // side[PER_CHANNEL_GROUP]]) / mass[row]
