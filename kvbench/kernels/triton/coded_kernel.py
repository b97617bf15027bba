"""Decode attention on stored codes, in Triton: flash-decoding whose tiles are unpacked in registers.

Tensor cores multiply codes or levels, exact in fp16, with queries and softmax weights in fp16, or in two fp16 parts
where the query is fp32. Scales, zeros and the factors of components enter in fp32, with the query before the product or
on its sums, so that no stored value is ever expanded to memory. What rounding takes from queries and weights is made
good at the middle of the codes: errors are those of codes that lie around zero.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005, SIM108
# Triton compiles a language of its own that looks like Python: without starred tuples, and with types of its own.

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from kvbench.kernels.triton.splits import LOG2E, LOWEST, store_lse, visible
from kvbench.kernels.triton.unpack import SUBNORMAL, codes_of, levels_of, load_words, width_of

_BOOST = tl.constexpr(32768.0)
"""What the largest fp16 operand of a product is scaled to, so that the small ones keep their digits."""


class _Operands(NamedTuple):
    """A query as operands by channel and block, in units of ``unit`` (rows,), and what channels need beside them.

    ``sums`` of its components for the zeros, and ``losses``, what rounding took from the scores, (rows,) each.
    """

    operands: tuple
    unit: tl.tensor
    sums: tuple
    losses: tuple


class _Tile(NamedTuple):
    """``group`` (groups of eight tokens,) of a head in a row of the batch, which has ``tokens`` in all."""

    batch: tl.tensor
    head: tl.tensor
    group: tl.tensor
    tokens: tl.tensor


@triton.jit(do_not_specialize=["tokens"])
def attend(query, keys, values, mask, out, tokens, PROGRAM: tl.constexpr):
    """Program (split, head and row block, batch): one pass over its tiles of groups of eight tokens."""
    split, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    head = tl.program_id(1) % query.groups
    row = tl.program_id(1) // query.groups * PROGRAM.rows + tl.arange(0, PROGRAM.rows)
    real = (row < query.rows)[:, None]
    at = ((batch * query.groups + head) * query.rows + row)[:, None] * keys.rank
    rounded = _query_operands(query, keys, at, real, PROGRAM.keys, PROGRAM.precise)
    top = tl.full([PROGRAM.rows], LOWEST, tl.float32)
    mass = tl.full([PROGRAM.rows, PROGRAM.tile], 0.0, tl.float32)
    mixed, biases = _nothing(PROGRAM.rows, PROGRAM.tile, PROGRAM.values)
    tiles, splits = tl.cdiv(tokens, PROGRAM.tile * 8), tl.num_programs(0)
    for index in tl.range(tiles * split // splits, tiles * (split + 1) // splits):
        tile = _Tile(batch, head, index * PROGRAM.tile + tl.arange(0, PROGRAM.tile), tokens)
        scores = _score(rounded, keys, tile, PROGRAM.keys)
        scores, peak = _apply_mask(scores, mask, tile)
        highest = tl.maximum(top, tl.max(peak, 1))
        fade = tl.exp2(top - highest)[:, None]
        weights, added = _softmax_weights(scores, highest)
        mass = mass * fade + added
        mixed, biases = _mix(weights, (mixed, biases), fade, values, tile, PROGRAM.values, PROGRAM.precise)
        top = highest
    total = tl.sum(mass, 1)
    place = store_lse(query, out, top, total, row, splits)
    _store(out.data + place[:, None] * values.rank, real, mixed, biases, total, values, PROGRAM.values)


@triton.jit
def _query_operands(query, keys, at, real, PLAN: tl.constexpr, PRECISE: tl.constexpr):
    """The ``real`` rows of the query that begin ``at`` (rows, 1), rounded to what codes are multiplied with."""
    peak = tl.full([at.shape[0]], 1e-30, tl.float32)
    for channel in tl.static_range(len(PLAN)):
        for n in tl.static_range(len(PLAN[channel].blocks)):
            components = _components(query, keys, at, real, PLAN[channel].blocks[n])
            peak = tl.maximum(peak, tl.max(tl.abs(components) * _code_unit(keys, PLAN[channel].blocks[n])[None, :], 1))
    unit = peak / _BOOST
    operands, sums, losses = (), (), ()
    for channel in tl.static_range(len(PLAN)):
        blocks, total, loss = (), tl.zeros([at.shape[0]], tl.float32), tl.zeros([at.shape[0]], tl.float32)
        for n in tl.static_range(len(PLAN[channel].blocks)):
            components = _components(query, keys, at, real, PLAN[channel].blocks[n])
            code_unit = _code_unit(keys, PLAN[channel].blocks[n])[None, :]
            parts, rest = _rounded(components * code_unit / unit[:, None], PRECISE)
            blocks, total = blocks + (parts,), total + tl.sum(components, 1)
            loss += tl.sum(rest * (_middle(keys, PLAN[channel].blocks[n])[None, :] / code_unit), 1) * unit
        operands, sums, losses = operands + (blocks,), sums + (total,), losses + (loss,)
    return _Operands(operands, unit, sums, losses)


@triton.jit
def _components(query, keys, at, real, BLOCK: tl.constexpr):
    """The query's components of a block (rows, size), with the factors of the keys' and what scores are scaled by."""
    column = tl.arange(0, BLOCK.size)
    components = tl.load(query.data + at + BLOCK.first + column[None, :], real & (column < BLOCK.count)[None, :], 0)
    return components.to(tl.float32) * (_factor(keys, BLOCK)[None, :] * (query.scaling * LOG2E))


@triton.jit
def _score(query, keys, tile, PLAN: tl.constexpr):
    """Scores (rows, groups) of tokens 0…7 of the groups."""
    first = keys.codes + tile.batch * keys.row + tile.head * keys.head + tile.group.to(tl.int64)[None, :] * keys.group
    zeros = tl.zeros([query.unit.shape[0], tile.group.shape[0]], tl.float32)
    scores = (zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros)
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
                operand = _operand(words[n], column, keys, PLAN[channel].blocks[n], t)
                dots = _dot(query.operands[channel][n], operand, dots)
            dots = dots * query.unit[:, None] + query.losses[channel][:, None]
            if keys.scale is not None:
                dots = dots * _affine(keys.scale, keys, tile, t, channel)[None, :]
            if keys.zero is not None:
                zero = _affine(keys.zero, keys, tile, t, channel)
                dots = dots + zero[None, :] * query.sums[channel][:, None]
            added = added + (scores[t] + dots,)
        scores = added
    return scores


@triton.jit
def _apply_mask(scores, mask, tile):
    """The scores of visible tokens, and the largest of each eight."""
    visibles, peak = (), tl.full(scores[0].shape, LOWEST, tl.float32)
    for t in tl.static_range(8):
        token = tile.group * 8 + t
        score = visible(mask, tile.batch, tile.head, token, token < tile.tokens, scores[t])
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
    group = tile.group
    first = values.codes + tile.batch * values.row + tile.head * values.head
    first = first + group.to(tl.int64)[:, None] * values.group
    mixes, carried = (), ()
    for channel in tl.static_range(len(PLAN)):
        words = ()
        for n in tl.static_range(len(PLAN[channel].blocks)):
            column = tl.arange(0, PLAN[channel].blocks[n].size)[None, :]
            inside = (group * 8 < tile.tokens)[:, None] & (column < PLAN[channel].blocks[n].count)
            words = words + (load_words(first, column, inside, values, PLAN[channel].blocks[n]),)
        scaled, zeroed, unit = _scaled(weights, values, tile, channel)
        loss, operands = tl.zeros(zeroed.shape, tl.float32), ()
        for t in tl.static_range(8):
            parts, rest = _rounded(scaled[t] * (_BOOST / unit), PRECISE)
            loss, operands = loss + rest, operands + (parts,)
        loss = biases[channel][0] * fade + loss * (unit / _BOOST)
        carried = carried + ((loss, biases[channel][1] * fade + zeroed),)
        blocks = ()
        for n in tl.static_range(len(PLAN[channel].blocks)):
            sums = tl.zeros(mixed[channel][n].shape, tl.float32)
            column = tl.arange(0, PLAN[channel].blocks[n].size)[None, :]
            for t in tl.static_range(8):
                sums = _dot(operands[t], _operand(words[n], column, values, PLAN[channel].blocks[n], t), sums)
            blocks = blocks + (mixed[channel][n] * fade + sums * (unit / _BOOST),)
        mixes = mixes + (blocks,)
    return mixes, carried


@triton.jit
def _scaled(weights, values, tile, CHANNEL: tl.constexpr):
    """Weights times scales, the sum of weights times zeros, and the largest scale."""
    zeroed = tl.zeros(weights[0].shape, tl.float32)
    if values.zero is not None:
        for t in tl.static_range(8):
            zeroed += weights[t] * _affine(values.zero, values, tile, t, CHANNEL)[None, :]
    if values.scale is None:
        scaled, unit = weights, 1.0
    else:
        scaled, most = (), tl.full([tile.group.shape[0]], 1e-8, tl.float32)
        for t in tl.static_range(8):
            scale = _affine(values.scale, values, tile, t, CHANNEL)
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
            bias = losses[:, None] * _middle(values, PLAN[channel].blocks[n])[None, :] + zeros[:, None]
            output = mixed[channel][n] * _code_unit(values, PLAN[channel].blocks[n])[None, :] + bias
            output = output * _factor(values, PLAN[channel].blocks[n])[None, :] / total[:, None]
            there = real & (column < PLAN[channel].blocks[n].count)[None, :]
            tl.store(out + PLAN[channel].blocks[n].first + column[None, :], output, there)


@triton.jit
def _dot(parts, codes, sums):
    """``sums`` + ``parts`` · ``codes``."""
    for n in tl.static_range(len(parts)):
        sums = tl.dot(parts[n], codes, sums)
    return sums


@triton.jit
def _rounded(number, PRECISE: tl.constexpr):
    """``number`` as one or two fp16 operands, and what they lack."""
    high = number.to(tl.float16)
    rest = number - high.to(tl.float32)
    if PRECISE:
        parts, rest = (high, rest.to(tl.float16)), tl.zeros(number.shape, tl.float32)
    else:
        parts = (high,)
    return parts, rest


@triton.jit
def _affine(numbers, side, tile, TOKEN: tl.constexpr, CHANNEL: tl.constexpr):
    """Scales or zeros of token 0…7 of all groups of a tile."""
    token = tile.group * 8 + TOKEN
    at = tile.batch * side.scale_row + tile.head * side.scale_head + token * side.scale_token + CHANNEL
    return tl.load(numbers + at, token < tile.tokens, 0).to(tl.float32)


@triton.jit
def _factor(side, BLOCK: tl.constexpr):
    """The factors of a block's components, zero where they have no bits."""
    column = tl.arange(0, BLOCK.size)
    factor = tl.full([BLOCK.size], 1.0, tl.float32)
    if side.component is not None:
        factor = tl.load(side.component + BLOCK.first + column, column < BLOCK.count, 0).to(tl.float32)
    if BLOCK.width == 0:
        factor = tl.where(width_of(column, side, BLOCK) > 0, factor, 0.0)
    return factor


@triton.jit
def _code_unit(side, BLOCK: tl.constexpr):
    """By what the operands of a block are multiplied to be codes or levels (size,)."""
    width = width_of(tl.arange(0, BLOCK.size), side, BLOCK)
    unit = tl.full([BLOCK.size], SUBNORMAL, tl.float32)
    if side.units is not None:
        unit = tl.load(side.units + width + tl.arange(0, BLOCK.size) * 0)
    return unit


@triton.jit
def _middle(side, BLOCK: tl.constexpr):
    """The middle of a block's codes (size,): what rounding costs is made good there, as if codes lay around zero."""
    width = width_of(tl.arange(0, BLOCK.size), side, BLOCK)
    middle = tl.full([BLOCK.size], 0.0, tl.float32)
    if side.units is None:
        middle += tl.exp2(width + middle) / 2
    return middle


@triton.jit
def _operand(words, column, side, BLOCK: tl.constexpr, TOKEN: tl.constexpr):
    """Codes or levels of token 0…7 of all groups of a tile."""
    if side.levels is not None:
        operand = levels_of(words, column, side, BLOCK, TOKEN)
    else:
        operand = codes_of(words, BLOCK, TOKEN)
    return operand
