"""Decode attention on stored codes, in Triton: flash-decoding whose tiles are unpacked in registers.

Tensor cores multiply codes or levels, exact in fp16, with queries and softmax weights in fp16, or in two fp16 parts
where the query is fp32. Scales, zeros and the factors of components enter in fp32, with the query before the product or
on its sums, so that no stored value is ever expanded to memory. What rounding takes from queries and weights is made
good at the middle of the codes: errors are those of codes that lie around zero.

Where queries differ between blocks of tokens (scales per component of every block, or latent queries for every block's
position), a program has rows for each block that a tile may touch: a row sees the tokens of its block and no others,
and its sums are merged with those of the others as splits are.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005
# Triton compiles a language of its own that looks like Python: without starred tuples, and with types of its own.

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from kvbench.kernels.triton.operands import (
    BOOST,
    Rows,
    affine,
    code_unit,
    dot,
    factor,
    middle,
    operand_of,
    rounded,
    tile_at,
    words_of,
)
from kvbench.kernels.triton.rebuild_kernel import query_unit, rebuilt_scores
from kvbench.kernels.triton.splits import LOG2E, LOWEST, store_lse, visible
from kvbench.kernels.triton.unpack import load_words


class _Operands(NamedTuple):
    """A query as operands by channel and block, in units of ``unit`` (rows,), and what channels need beside them.

    ``sums`` of its components for the zeros, and ``losses``, what rounding took from the scores, (rows,) each; and
    ``start`` (rows,), what is in the scores of all tokens.
    """

    operands: tuple
    unit: tl.tensor
    sums: tuple
    losses: tuple
    start: tl.tensor


class _Place(NamedTuple):
    """Where (rows, 1) the components of ``real`` queries begin, ``at``, and the scales of their blocks, ``scales``."""

    at: tl.tensor
    real: tl.tensor
    scales: tl.tensor


@triton.jit(do_not_specialize=["tokens"])
def attend(query, keys, values, rebuilt, mask, out, tokens, PROGRAM: tl.constexpr):
    """Program (split, head and row block, batch): one pass over its tiles of groups of eight tokens."""
    split, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    head = tl.program_id(1) % query.groups
    row = tl.program_id(1) // query.groups * PROGRAM.rows + tl.arange(0, PROGRAM.rows)
    real = (row < query.rows)[:, None]
    rows = Rows(row, real, batch * query.groups + head, query.rows // PROGRAM.phases)
    top = tl.full([PROGRAM.rows], LOWEST, tl.float32)
    mass = tl.full([PROGRAM.rows, PROGRAM.tile], 0.0, tl.float32)
    mixed, biases = _nothing(PROGRAM.rows, PROGRAM.tile, PROGRAM.values)
    tiles, splits = tl.cdiv(tokens, PROGRAM.tile * 8), tl.num_programs(0)
    first = tiles * split // splits
    if PROGRAM.absorbs and PROGRAM.block == 0:
        always = _query_operands(query, keys, rows, tile_at(batch, head, first, tokens, PROGRAM.tile), PROGRAM)
    if len(PROGRAM.dims) > 0:
        unit = query_unit(rebuilt, rows, PROGRAM)
    for index in tl.range(first, tiles * (split + 1) // splits):
        tile = tile_at(batch, head, index, tokens, PROGRAM.tile)
        scores = _no_scores(PROGRAM.rows, PROGRAM.tile)
        if PROGRAM.absorbs:
            if PROGRAM.block == 0:
                scores = _score(always, keys, tile, PROGRAM.keys)
            else:
                scores = _score(_query_operands(query, keys, rows, tile, PROGRAM), keys, tile, PROGRAM.keys)
        if len(PROGRAM.dims) > 0:
            scores = _sum(scores, rebuilt_scores(unit, rebuilt, keys, tile, rows, PROGRAM))
        scores, peak = _apply_mask(scores, mask, tile, rows, PROGRAM)
        highest = tl.maximum(top, tl.max(peak, 1))
        fade = tl.exp2(top - highest)[:, None]
        weights, added = _softmax_weights(scores, highest)
        mass = mass * fade + added
        mixed, biases = _mix(weights, (mixed, biases), fade, values, tile, PROGRAM.values, PROGRAM.precise)
        top = highest
    total = tl.sum(mass, 1)
    if PROGRAM.phases > 1:
        total = tl.where(total > 0, total, 1.0)  # a row whose blocks have no tokens here
    place = store_lse(query, out, top, total, row, splits)
    _store(out.data + place[:, None] * values.rank, real, mixed, biases, total, values, PROGRAM.values)


@triton.jit
def _query_operands(query, keys, rows, tile, PROGRAM: tl.constexpr):
    """The queries that meet a tile, rounded to what codes are multiplied with."""
    place, start = _place(query, keys, rows, tile, PROGRAM)
    peak = tl.full([PROGRAM.rows], 1e-30, tl.float32)
    for channel in tl.static_range(len(PROGRAM.keys)):
        for n in tl.static_range(len(PROGRAM.keys[channel].blocks)):
            components = _scaled_query(query, keys, place, PROGRAM.keys[channel].blocks[n])
            largest = tl.max(tl.abs(components) * code_unit(keys, PROGRAM.keys[channel].blocks[n])[None, :], 1)
            peak = tl.maximum(peak, largest)
    unit = peak / BOOST
    operands, sums, losses = (), (), ()
    for channel in tl.static_range(len(PROGRAM.keys)):
        blocks, total = (), tl.full([PROGRAM.rows], 0.0, tl.float32)
        loss = tl.full([PROGRAM.rows], 0.0, tl.float32)
        for n in tl.static_range(len(PROGRAM.keys[channel].blocks)):
            components = _scaled_query(query, keys, place, PROGRAM.keys[channel].blocks[n])
            units = code_unit(keys, PROGRAM.keys[channel].blocks[n])[None, :]
            parts, rest = rounded(components * units / unit[:, None], PROGRAM.precise)
            blocks, total = blocks + (parts,), total + tl.sum(components, 1)
            loss += tl.sum(rest * (middle(keys, PROGRAM.keys[channel].blocks[n])[None, :] / units), 1) * unit
            if keys.block_zero is not None:
                start += _block_zeros(query, keys, place, PROGRAM.keys[channel].blocks[n])
        operands, sums, losses = operands + (blocks,), sums + (total,), losses + (loss,)
    return _Operands(operands, unit, sums, losses, start)


@triton.jit
def _place(query, keys, rows, tile, PROGRAM: tl.constexpr):
    """Which queries meet a tile, which scales, and what is in the scores of all tokens (rows,)."""
    first, block = rows.pair * query.rows + rows.row, rows.row * 0
    start = tl.full([PROGRAM.rows], 0.0, tl.float32)
    if PROGRAM.block > 0:
        blocks = tl.cdiv(tile.tokens, PROGRAM.block)
        block = tl.minimum(tile.start // PROGRAM.block + rows.row // rows.each, blocks - 1)
        first = rows.pair * rows.each + rows.row % rows.each
        if query.shift is not None:
            first = (rows.pair * blocks + block) * rows.each + rows.row % rows.each
            start += tl.load(query.shift + first, rows.row < query.rows, 0) * (query.scaling * LOG2E)
    scales = tile.batch * keys.block_row + tile.head * keys.block_head + block * keys.rank
    return _Place(first[:, None] * keys.rank, rows.real, scales[:, None]), start


@triton.jit
def _scaled_query(query, keys, place, BLOCK: tl.constexpr):
    """The query's components of a block (rows, size), with the factors of the keys' and what scores are scaled by."""
    components = _components(query, place, BLOCK) * factor(keys, BLOCK)[None, :]
    if keys.block_scale is not None:
        components = components * _of_blocks(keys.block_scale, place, BLOCK)
    return components


@triton.jit
def _block_zeros(query, keys, place, BLOCK: tl.constexpr):
    """What the zeros of a block of tokens add to all of its scores (rows,)."""
    return tl.sum(_components(query, place, BLOCK) * _of_blocks(keys.block_zero, place, BLOCK), 1)


@triton.jit
def _components(query, place, BLOCK: tl.constexpr):
    """The query's components of a block, times what scores are scaled by."""
    column = tl.arange(0, BLOCK.size)[None, :]
    components = tl.load(query.data + place.at + BLOCK.first + column, place.real & (column < BLOCK.count), 0)
    return components.to(tl.float32) * (query.scaling * LOG2E)


@triton.jit
def _of_blocks(numbers, place, BLOCK: tl.constexpr):
    """Scales or zeros (rows, size) of the components of every row's block of tokens."""
    column = tl.arange(0, BLOCK.size)[None, :]
    there = place.real & (column < BLOCK.count)
    return tl.load(numbers + place.scales + BLOCK.first + column, there, 0).to(tl.float32)


@triton.jit
def _no_scores(ROWS: tl.constexpr, TILE: tl.constexpr):
    """Zero for tokens 0…7 of the groups, (rows, groups) each."""
    zeros = tl.zeros([ROWS, TILE], tl.float32)
    return zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros


@triton.jit
def _sum(scores, others):
    """Scores of both, token by token."""
    sums = ()
    for t in tl.static_range(8):
        sums = sums + (scores[t] + others[t],)
    return sums


@triton.jit
def _score(query, keys, tile, PLAN: tl.constexpr):
    """Scores (rows, groups) of tokens 0…7 of the groups."""
    first = keys.codes + tile.batch * keys.row + tile.head * keys.head + tile.group.to(tl.int64)[None, :] * keys.group
    zeros = tl.zeros([query.unit.shape[0], tile.group.shape[0]], tl.float32)
    start = zeros + query.start[:, None]
    scores = (start, start, start, start, start, start, start, start)
    for channel in tl.static_range(len(PLAN)):
        words = ()
        for n in tl.static_range(len(PLAN[channel].blocks)):
            column = tl.arange(0, PLAN[channel].blocks[n].size)[:, None]
            inside = (tile.group * 8 < tile.tokens)[None, :] & (column < PLAN[channel].blocks[n].count)
            words = words + (load_words(first, column, inside, keys, PLAN[channel].blocks[n]),)
        added = ()
        for t in tl.static_range(8):
            dots = zeros
            for n in tl.static_range(len(PLAN[channel].blocks)):
                column = tl.arange(0, PLAN[channel].blocks[n].size)[:, None]
                operand = operand_of(words[n], column, keys, PLAN[channel].blocks[n], t)
                dots = dot(query.operands[channel][n], operand, dots)
            dots = dots * query.unit[:, None] + query.losses[channel][:, None]
            if keys.scale is not None:
                dots = dots * affine(keys.scale, keys, tile, tile.group * 8 + t, channel)[None, :]
            if keys.zero is not None:
                zero = affine(keys.zero, keys, tile, tile.group * 8 + t, channel)
                dots = dots + zero[None, :] * query.sums[channel][:, None]
            added = added + (scores[t] + dots,)
        scores = added
    return scores


@triton.jit
def _apply_mask(scores, mask, tile, rows, PROGRAM: tl.constexpr):
    """The scores of visible tokens, and the largest of each eight."""
    visibles, peak = (), tl.full(scores[0].shape, LOWEST, tl.float32)
    for t in tl.static_range(8):
        token = tile.group * 8 + t
        score = visible(mask, tile.batch, tile.head, token, token < tile.tokens, scores[t])
        if PROGRAM.phases > 1:
            block = token // PROGRAM.block - tile.start // PROGRAM.block
            score = tl.where((rows.row // rows.each)[:, None] == block[None, :], score, -float("inf"))
        visibles, peak = visibles + (score,), tl.maximum(peak, score)
    return visibles, peak


@triton.jit
def _softmax_weights(scores, highest):
    """Softmax weights, not yet divided by their sum, and the sum of each eight."""
    weights, added = (), tl.zeros(scores[0].shape, tl.float32)
    for t in tl.static_range(8):
        weight = tl.exp2(scores[t] - highest[:, None])
        weights, added = weights + (weight,), added + weight
    return weights, added


@triton.jit
def _nothing(ROWS: tl.constexpr, TILE: tl.constexpr, PLAN: tl.constexpr):
    """Sums of nothing yet: (rows, size) per block; what rounding took and zeros, (rows, groups) per channel group."""
    mixed, biases = (), ()
    for channel in tl.static_range(len(PLAN)):
        zeros = tl.zeros([ROWS, TILE], tl.float32)
        blocks = ()
        for n in tl.static_range(len(PLAN[channel].blocks)):
            blocks = blocks + (tl.full([ROWS, PLAN[channel].blocks[n].size], 0.0, tl.float32),)
        mixed, biases = mixed + (blocks,), biases + ((zeros, zeros),)
    return mixed, biases


@triton.jit
def _mix(weights, before, fade, values, tile, PLAN: tl.constexpr, PRECISE: tl.constexpr):
    """The sums of :func:`_nothing` with a tile of values added, the sums ``before`` it times ``fade``."""
    mixed, biases = before
    mixes, carried = (), ()
    for channel in tl.static_range(len(PLAN)):
        words = ()
        for n in tl.static_range(len(PLAN[channel].blocks)):
            words = words + (words_of(values, tile, PLAN[channel].blocks[n]),)
        scaled, zeroed, unit = _scaled(weights, values, tile, channel)
        loss, operands = tl.zeros(zeroed.shape, tl.float32), ()
        for t in tl.static_range(8):
            parts, rest = rounded(scaled[t] * (BOOST / unit), PRECISE)
            loss, operands = loss + rest, operands + (parts,)
        loss = biases[channel][0] * fade + loss * (unit / BOOST)
        carried = carried + ((loss, biases[channel][1] * fade + zeroed),)
        blocks = ()
        for n in tl.static_range(len(PLAN[channel].blocks)):
            sums = tl.zeros(mixed[channel][n].shape, tl.float32)
            column = tl.arange(0, PLAN[channel].blocks[n].size)[None, :]
            for t in tl.static_range(8):
                sums = dot(operands[t], operand_of(words[n], column, values, PLAN[channel].blocks[n], t), sums)
            blocks = blocks + (mixed[channel][n] * fade + sums * (unit / BOOST),)
        mixes = mixes + (blocks,)
    return mixes, carried


@triton.jit
def _scaled(weights, values, tile, CHANNEL: tl.constexpr):
    """Weights times scales, the sum of weights times zeros, and the largest scale."""
    zeroed = tl.zeros(weights[0].shape, tl.float32)
    if values.zero is not None:
        for t in tl.static_range(8):
            zeroed += weights[t] * affine(values.zero, values, tile, tile.group * 8 + t, CHANNEL)[None, :]
    if values.scale is None:
        scaled, unit = weights, 1.0
    else:
        scaled, most = (), tl.full([tile.group.shape[0]], 1e-8, tl.float32)
        for t in tl.static_range(8):
            scale = affine(values.scale, values, tile, tile.group * 8 + t, CHANNEL)
            scaled, most = scaled + (weights[t] * scale[None, :],), tl.maximum(most, tl.abs(scale))
        unit = tl.max(most, 0)
    return scaled, zeroed, unit


@triton.jit
def _store(out, real, mixed, biases, total, values, PLAN: tl.constexpr):
    """The output by blocks: sums of operands, what rounding took and zeros, divided by the sum of weights."""
    for channel in tl.static_range(len(PLAN)):
        losses, zeros = tl.sum(biases[channel][0], 1), tl.sum(biases[channel][1], 1)
        for n in tl.static_range(len(PLAN[channel].blocks)):
            column = tl.arange(0, PLAN[channel].blocks[n].size)
            bias = losses[:, None] * middle(values, PLAN[channel].blocks[n])[None, :] + zeros[:, None]
            output = mixed[channel][n] * code_unit(values, PLAN[channel].blocks[n])[None, :] + bias
            output = output * factor(values, PLAN[channel].blocks[n])[None, :] / total[:, None]
            there = real & (column < PLAN[channel].blocks[n].count)[None, :]
            tl.store(out + PLAN[channel].blocks[n].first + column[None, :], output, there)
