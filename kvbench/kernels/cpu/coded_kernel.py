"""Decode attention over packed codes on the CPU: one pass, online softmax, nothing expanded beyond a tile of 64 tokens.

A stored value is ``a · u + b`` with a code or level ``u`` of at most 8 bits and ``a`` ≥ 0, ``b`` constant or one pair
per token and channel group. Scores and outputs are integer dot products of ``u`` with queries and weights rounded to
two bytes each, so their error stays near 1e-4; ``a`` and ``b`` enter in fp32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu import unpack_kernel
from kvbench.kernels.cpu.llvm import byte_ops, float_ops, vectors
from kvbench.kernels.cpu.memory import (
    JIT,
    TILE,
    fetch_ahead,
    floats,
    halves,
    longs,
)
from kvbench.kernels.cpu.projection_kernel import LOW, finish, from_latents, into_latents, round_query, wide_size
from kvbench.kernels.cpu.records import (
    AFFINE,
    CHANNELS,
    CODES,
    DIM,
    DIRECT,
    FLIP,
    GROUP_BYTES,
    HEAD,
    NIBBLES,
    PADDED,
    PER_CHANNEL_GROUP,
    ROW,
    SCALE,
    SCALE_HEAD,
    SCALE_ROW,
    UNPACKING,
    WIDTH,
    ZERO,
)
from kvbench.kernels.cpu.softmax_kernel import begin, fill, hide, soften

_F = np.float32
_AHEAD = 2 * TILE
"""Tokens that scales are asked for in advance."""

_MOST = _F(65534)
"""The largest weight of a tile, as two bytes; one less than they hold, for exponentials that round up."""


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
    widened = np.empty(max(wide_size(keys), wide_size(values)), _F)
    dots, rounded = np.empty((6, TILE), np.int32), np.empty((6, TILE), np.uint8)
    blocks = (tokens + TILE - 1) // TILE
    for index in range(unit, last):
        pair, split = index // splits, index % splits
        row, head = pair // heads, pair % heads
        into_latents(query + 4 * pair * rows * keys[DIM], keys, head, latents, shift, widened)
        round_query(latents, scaling, rows, keys, picked, sides, query_unit, query_sum)
        begin(top, mass, total, bias)
        affine = affines.ctypes.data
        for block in range(blocks * split // splits, blocks * (split + 1) // splits):
            start = block * TILE
            count = min(TILE, tokens - start)
            fetch_scales(keys, row, head, start + _AHEAD)
            fetch_scales(values, row, head, start + _AHEAD)
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
        from_latents(mixed, values, head, out + 4 * index * rows * values[DIM], widened)


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
            float_ops.add_scores(to + 8 * TILE * r, LOW, u, o, affine, affine + 4 * TILE, own)


@njit(**JIT)
def form(side: Any, count: int, channel: int) -> Any:
    """Whether a tile is nibbles, its bytes per 8 tokens, where a channel group begins, and how far on the next tile."""
    group_bytes, first = 8 * side[PADDED], 4 * channel * side[PER_CHANNEL_GROUP]
    if side[DIRECT] and count == TILE:
        group_bytes = side[GROUP_BYTES]
        return side[NIBBLES], group_bytes, first, TILE // 8 * group_bytes
    return 0, group_bytes, first, 0


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
