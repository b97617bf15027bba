"""Decode attention over packed codes on the CPU: one pass, online softmax, nothing expanded beyond a tile of 64 tokens.

A stored number is ``scale · u + zero`` with a code or level ``u`` of at most 8 bits; scale ≥ 0 and zero are constant or
one pair per token and channel group. Scores and outputs are integer dot products of ``u`` with queries and softmax
weights rounded to two bytes each, so their error stays near 1e-4; scales and zeros enter in fp32.

``side`` is a :class:`~kvbench.kernels.cpu.records.CodedSide`, ``work`` a
:class:`~kvbench.kernels.cpu.workspace.Workspace`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.exact_kernel import state_address
from kvbench.kernels.cpu.llvm import byte_ops, exact_ops, float_ops, matrix_ops, product_ops, vectors
from kvbench.kernels.cpu.memory import JIT, ROWS_AT_ONCE, TILE, fill, floats, record_at
from kvbench.kernels.cpu.projection_kernel import finalise_output, output_from_latents
from kvbench.kernels.cpu.query_kernel import absorb_query, begin_query, prefetch_blocks, query_for
from kvbench.kernels.cpu.rebuild_kernel import (
    add_rebuilt_scores,
    into_steps,
    place_query,
    read_token_affine,
    rotary_tile,
    split_query,
    turn_query,
    used_into_steps,
)
from kvbench.kernels.cpu.softmax_kernel import apply_mask, begin_softmax, update_softmax
from kvbench.kernels.cpu.tile_kernel import AFFINE_BYTES, prefetch_scales, read_affine, tile_bytes, whole_bytes
from kvbench.kernels.cpu.workspace import WORKSPACE, coded_workspace

_F = np.float32
_LOW = _F(1 / product_ops.FINE_STEPS)
"""What the second byte of a rounded query counts, in units of the first."""

_PREFETCHED = 2 * TILE
"""Tokens that scales are prefetched in advance."""

_MOST = _F(65534)
"""The largest weight of a tile, as two bytes; one less than they hold, for exponentials that round up."""


@njit(**JIT)
def attend_coded(first: int, last: int, job: Any) -> None:
    """Units [first, last) of a :class:`~kvbench.kernels.cpu.records.CodedJob`."""
    keys, rebuilt, values, turned, rows = job.keys, job.rebuilt, job.values, job.turned, job.rows
    block = coded_workspace(job)
    work = record_at(block.ctypes.data, WORKSPACE)
    scaling = vectors.as_float(np.int32(job.scaling))
    by_matrices = keys.by_matrices or values.by_matrices or rebuilt.decoder != 0
    if by_matrices:
        matrix_ops.configure()
    tiles = (job.tokens + TILE - 1) // TILE
    for unit in range(first, last):
        pair, split = unit // job.splits, unit % job.splits
        row, head = pair // job.heads, pair % job.heads
        query = job.query + 4 * pair * rows * job.query_width
        if keys.codes and not turned.block:
            begin_query(query + 4 * job.absorbed_from, job.query_width, scaling, keys, head, work)
        else:
            fill(work.mean_score, rows, _F(0))
        if turned.block:
            split_query(query, job.query_width, turned, work)
        if rebuilt.decoder:
            place_query(query, job.query_width, scaling, rebuilt, work)
        begin_softmax(work)
        first_tile = tiles * split // job.splits
        mask = job.mask and job.mask + row * job.mask_row_stride + head * job.mask_head_stride
        for tile in range(first_tile, tiles * (split + 1) // job.splits):
            start = tile * TILE
            count = min(TILE, job.tokens - start)
            prefetch_scales(values, row, head, start + _PREFETCHED)
            key_tile, stream_tile = 0, 0
            if turned.block and (tile == first_tile or start % turned.block == 0):
                begin_block(turned, keys, row, head, start // turned.block, scaling, work)
            if keys.codes:
                prefetch_scales(keys, row, head, start + _PREFETCHED)
                prefetch_blocks(keys, row, head, start + _PREFETCHED, TILE)
                key_tile = tile_bytes(keys, row, head, start, count, work.key_tile)
                if keys.by_matrices:
                    into_steps(key_tile, keys, work)
                add_scores(key_tile, keys, row, head, start, count, scaling, work)
            else:
                fill(work.scores, rows * TILE, _F(0))
            if rebuilt.decoder:
                stream_tile = add_scores_of_rebuilt(job, key_tile, row, head, start, count, work)
            if job.exact.states:
                key = state_address(job.exact, row, head, start)
                add_exact_scores(key, job.exact, query, job.query_width, count, scaling, work)
            apply_mask(work, mask and mask + start, count)
            if update_softmax(work):
                value_tile = 0
                if not values.direct and values.codes == job.stream.codes:
                    value_tile = stream_tile
                elif not values.direct and values.codes == keys.codes:
                    value_tile = key_tile
                value_tile = value_tile or tile_bytes(values, row, head, start, count, work.value_tile)
                add_values(value_tile, values, row, head, start, count, work)
        finalise_output(values, scaling, job.lse + 4 * unit * rows, work)
        output_from_latents(values, head, job.output + 4 * unit * rows * values.head_dim, work)
    if by_matrices:
        matrix_ops.release()
    block[0] = 0  # numba drops an array after its last use, and all others know its address only


@njit(**JIT)
def begin_block(turned: Any, side: Any, row: int, head: int, block: int, scaling: Any, work: Any) -> None:
    """Take the queries, turned back to a block, to the keys' columns; the mean's part differs between blocks."""
    turn_query(turned, row, head, block, work)
    absorb_query(turned, side, head, scaling, work)
    mean_score = floats(work.mean_score, work.rows)
    for r in range(work.rows):
        mean_score[r] = _F(0)


@njit(**JIT)
def add_scores_of_rebuilt(job: Any, key_tile: int, row: int, head: int, start: int, count: int, work: Any) -> int:
    """Add the scores of rebuilt keys; where the bytes are that they are rebuilt from, ``key_tile`` if alike."""
    keys, rebuilt, stream = job.keys, job.rebuilt, job.stream
    prefetch_scales(stream, row, head, start + _PREFETCHED)
    shared = key_tile and not keys.direct and keys.codes == stream.codes
    tile = key_tile if shared else whole_bytes(stream, row, head, start, count, work.stream_tile)
    if not (shared and keys.by_matrices):  # else all of it is in steps already
        used_into_steps(tile, stream, rebuilt, work)
    read_token_affine(stream, row, head, start, count, work)
    rotary_tile(rebuilt, row, head, start, count, work)
    add_rebuilt_scores(stream, rebuilt, head, work)
    return tile


@njit(**JIT)
def add_exact_scores(key: int, side: Any, query: int, width: int, count: int, scaling: Any, work: Any) -> None:
    """Add the scores of ``count`` keys from address ``key`` on, floating-point numbers that meet the first components
    of queries (rows, width)."""
    step, products = side.token_stride, work.products
    for row in range(0, work.rows, ROWS_AT_ONCE):
        q, together = query + 4 * width * row, min(ROWS_AT_ONCE, work.rows - row)
        exact_ops.exact_scores(
            key, q, products, together, count, side.components, step, 4 * width, 4 * TILE, TILE * step, side.kind
        )
        unscaled, scores = floats(products, TILE * together), floats(work.scores + 4 * TILE * row, TILE * together)
        for i in range(TILE * together):
            scores[i] += unscaled[i] * scaling


@njit(**JIT)
def add_scores(tile: int, side: Any, row: int, head: int, start: int, count: int, scaling: Any, work: Any) -> None:
    """Scores of a tile's tokens, of all channel groups together, block by block of tokens with the same query."""
    read_affine(side, row, head, start, count, work.affine)
    block_score, first = floats(work.block_score, work.rows), 0
    while first < count:
        last = min(query_for(side, row, head, start + first, scaling, work) - start, TILE)
        for r in range(work.rows):
            float_ops.fill_row(work.scores + 4 * (TILE * r + first), block_score[r], (last - first) // 16)
        for channel in range(side.column_groups):
            if side.by_matrices:
                score_by_matrices(side, channel, first, last, work)
            else:
                score_channel_group(tile, side, count, channel, first, last, work)
        first = last


@njit(**JIT)
def add_values(tile: int, side: Any, row: int, head: int, start: int, count: int, work: Any) -> None:
    """A tile's values times their softmax weights, added to the sums."""
    read_affine(side, row, head, start, count, work.affine)
    if side.by_matrices and side.flip:
        matrix_ops.flip(tile, TILE * side.padded_columns // 64)
    for channel in range(side.column_groups):
        if side.by_matrices:
            mix_by_matrices(tile, side, channel, work)
        else:
            mix_channel_group(tile, side, count, channel, work)


@njit(**JIT)
def affine_of(side: Any, channel: int, work: Any) -> int:
    """Where scales and zeros of a group of columns are; second bytes have those of the first ones."""
    return work.affine + AFFINE_BYTES * (channel % side.channel_groups)  # type: ignore[no-any-return]


@njit(**JIT)
def score_channel_group(tile: int, side: Any, count: int, channel: int, first: int, last: int, work: Any) -> None:
    """Add one channel group's scores of the tile's tokens [first, last): scale · (codes · query) + zero · Σ query."""
    nibbles, group_bytes, place, ahead = tile_form(side, count, channel)
    wide = min(side.group_columns, side.padded_columns - channel * side.group_columns) // vectors.LANES
    step, codes, rows, parts = work.query_stride, tile + place, work.rows, (last - first) // 16
    scale = affine_of(side, channel, work) + 4 * first
    units, sums = floats(work.query_unit, (channel + 1) * rows), floats(work.query_sum, (channel + 1) * rows)
    for row in range(0, rows, ROWS_AT_ONCE):
        some = min(ROWS_AT_ONCE, rows - row)
        query = work.query_bytes + 2 * (channel * rows + row) * step
        for part in range(first // 16, last // 16):
            byte_ops.scores(
                codes + 2 * part * group_bytes,
                query,
                work.products + 64 * part,
                some,
                wide,
                group_bytes,
                step,
                4 * TILE,
                nibbles,
                ahead,
            )
        for r in range(some):
            unit, total = units[channel * rows + row + r], sums[channel * rows + row + r]
            products, scores = work.products + 4 * (2 * TILE * r + first), work.scores + 4 * (TILE * (row + r) + first)
            float_ops.add_scores(products, _LOW, unit, total, scale, scale + 4 * TILE, scores, parts)


@njit(**JIT)
def score_by_matrices(side: Any, channel: int, first: int, last: int, work: Any) -> None:
    """:func:`score_channel_group` of a tile in steps, all rows at once."""
    wide = min(side.group_columns, side.padded_columns - channel * side.group_columns)
    groups, step, rows, parts = (wide + 63) // 64, work.query_stride, work.rows, (last - first) // 16
    codes = work.step_tile + TILE * channel * side.group_columns + 4 * first
    query, scale = work.query_bytes + 2 * channel * rows * step, affine_of(side, channel, work) + 4 * first
    units, sums = floats(work.query_unit, (channel + 1) * rows), floats(work.query_sum, (channel + 1) * rows)
    for row in range(0, 2 * rows, 2 * matrix_ops.ROWS):
        products, lefts = work.products + 4 * (TILE * row + first), 1 if 2 * rows - row <= matrix_ops.ROWS else 2
        matrix_ops.scores(codes, query + row * step, products, groups, step, lefts, parts)
    for r in range(rows):
        unit, total = units[channel * rows + r], sums[channel * rows + r]
        products, scores = work.products + 4 * (2 * TILE * r + first), work.scores + 4 * (TILE * r + first)
        float_ops.add_scores(products, _LOW, unit, total, scale, scale + 4 * TILE, scores, parts)


@njit(**JIT)
def tile_form(side: Any, count: int, channel: int) -> Any:
    """Whether a tile is nibbles, its bytes per 8 tokens, where a channel group begins, and how far on the next tile."""
    group_bytes, first = 8 * side.padded_columns, 4 * channel * side.group_columns
    if side.direct and count == TILE:
        group_bytes = side.group_bytes
        return side.nibbles, group_bytes, first, TILE // 8 * group_bytes
    return 0, group_bytes, first, 0


@njit(**JIT)
def mix_channel_group(tile: int, side: Any, count: int, channel: int, work: Any) -> None:
    """Add Σ p · value of one channel group: Σ p · scale · codes to ``total``, Σ p · zero to ``bias``, in parts."""
    nibbles, group_bytes, start, ahead = tile_form(side, count, channel)
    first = channel * side.group_columns
    stop = first + min(side.group_columns, side.padded_columns - first)
    unit = floats(work.weight_unit, work.rows)
    for row in range(0, work.rows, ROWS_AT_ONCE):
        some = min(ROWS_AT_ONCE, work.rows - row)
        round_weights(side, channel, row, some, work)
        column = first
        while column < stop:
            left = (stop - column) // vectors.LANES
            columns = 4 if left >= 4 else 2 if left >= 2 else 1
            byte_ops.mix(
                tile + start + 4 * (column - first),
                work.weight_bytes,
                work.products,
                some,
                columns,
                TILE // 8,
                group_bytes,
                TILE,
                4 * TILE,
                nibbles,
                side.flip,
                ahead,
            )
            for r in range(row, row + some):
                total = work.total + 4 * (r * work.total_width + column)
                float_ops.add_mixed(work.products + 8 * TILE * (r - row), 4 * TILE, unit[r], total, columns)
            column += columns * vectors.LANES


@njit(**JIT)
def mix_by_matrices(tile: int, side: Any, channel: int, work: Any) -> None:
    """:func:`mix_channel_group` of a tile of signed bytes in quads, all rows at once."""
    first, quad_bytes, rows = channel * side.group_columns, 4 * side.padded_columns, work.rows
    stop = first + min(side.group_columns, side.padded_columns - first)
    unit = floats(work.weight_unit, rows)
    round_weights(side, channel, 0, rows, work)
    for column in range(first, stop, 64):
        columns = min(64, stop - column) // vectors.LANES
        for row in range(0, 2 * rows, 2 * matrix_ops.ROWS):
            weights, products = work.weight_bytes + TILE * row, work.products + 4 * TILE * row
            lefts = 1 if 2 * rows - row <= matrix_ops.ROWS else 2
            matrix_ops.mix(tile + 4 * column, weights, products, lefts, columns, quad_bytes)
        for r in range(rows):
            total = work.total + 4 * (r * work.total_width + column)
            float_ops.add_mixed(work.products + 8 * TILE * r, 4 * TILE, unit[r], total, columns)


@njit(**JIT)
def round_weights(side: Any, channel: int, row: int, count: int, work: Any) -> None:
    """``count`` rows of weights from ``row`` on, times a channel group's scales, as bytes; their part of ``bias``."""
    scale = affine_of(side, channel, work)
    largest = max(float_ops.largest(scale, _F(1e-30)), _F(1e-30))
    lift = _F(128) if side.flip else _F(0)
    unit, peak = floats(work.weight_unit, work.rows), floats(work.peak, work.rows)
    for r in range(row, row + count):
        weights, high = work.scores + 4 * TILE * r, work.weight_bytes + 2 * (r - row) * TILE
        unit[r] = largest * peak[r] / _MOST
        float_ops.round_weights(weights, scale, _F(1) / unit[r], high, high + TILE)
        product_ops.join_weights(high, high + TILE, TILE // 64)
        bias = work.bias + 4 * (vectors.LANES * channel + r * work.bias_width)
        float_ops.weighted_sum(weights, scale + 4 * TILE, scale, lift, bias)
