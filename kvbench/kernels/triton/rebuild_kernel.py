"""Scores of keys that are stored before RoPE, in Triton: a tile's keys are rebuilt, rotated, and meet the queries.

Two products on tensor cores: of codes, exact in fp16, with the decoder in one or two fp16 parts, and of the rotated
keys with the queries, both rounded alike. Scales, zeros, means and the rotation enter in fp32 between them, in
registers. The two dimensions of a pair of RoPE are columns of two products, so that rotating needs no exchange.

``rebuilt`` is a :class:`~kvbench.kernels.triton.rebuilt.RebuiltSide`, ``keys`` the
:class:`~kvbench.kernels.triton.sides.Side` that keys are rebuilt from.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005
# Triton compiles a language of its own that looks like Python: without starred tuples, and with types of its own.

from __future__ import annotations

import triton
import triton.language as tl

from kvbench.kernels.triton.operands import BOOST, affine, by_token, rounded, tokens_of
from kvbench.kernels.triton.splits import LOG2E


@triton.jit
def query_unit(rebuilt, rows, PROGRAM: tl.constexpr):
    """What the queries' operands count (rows,): the largest of a row becomes BOOST."""
    peak = tl.full([PROGRAM.rows], 1e-30, tl.float32)
    for n in tl.static_range(len(PROGRAM.dims)):
        for part in tl.static_range(len(PROGRAM.dims[n].firsts)):
            query = _query(rebuilt, rows, rows.real, PROGRAM.dims[n], part)
            peak = tl.maximum(peak, tl.max(tl.abs(query), 1))
    return peak / BOOST


@triton.jit
def rebuilt_scores(unit, rebuilt, keys, tile, rows, PROGRAM: tl.constexpr):
    """Scores (rows, groups) of tokens 0…7 of the groups; queries are in units of ``unit``."""
    token = tile.start + tl.arange(0, 8 * PROGRAM.tile)
    position = _positions(rebuilt, tile, token)
    of_row = rows.row % rows.each // (rows.each // rebuilt.heads)
    scores = tl.full([8 * PROGRAM.tile, PROGRAM.rows], 0.0, tl.float32)
    for head in tl.range(rebuilt.heads):
        of_head = rows.real & (of_row == head)[:, None]
        place = tile.head * rebuilt.heads + head
        for n in tl.static_range(len(PROGRAM.dims)):
            states = _states(rebuilt, keys, tile, token, place, PROGRAM.dims[n], PROGRAM)
            if len(PROGRAM.dims[n].firsts) == 2:
                states = _rotated(states, rebuilt, position, PROGRAM.dims[n])
            for part in tl.static_range(len(PROGRAM.dims[n].firsts)):
                query = _query(rebuilt, rows, of_head, PROGRAM.dims[n], part) / unit[:, None]
                scores = _met(states[part], query, scores, PROGRAM.precise)
    return by_token(scores * unit[None, :], PROGRAM.tile, PROGRAM.rows)


@triton.jit
def _positions(rebuilt, tile, token):
    """The position (tokens,) of every token; one outside of the tables, that of padding, is read as the nearest."""
    position = token * 0
    if rebuilt.positions is not None:
        at = tile.batch * rebuilt.position_row + tile.head * rebuilt.position_head + token
        position = tl.load(rebuilt.positions + at, token < tile.tokens, 0)
        position = tl.minimum(tl.maximum(position, 0), rebuilt.table_rows - 1)
    return position


@triton.jit
def _query(rebuilt, rows, there, DIMS: tl.constexpr, PART: tl.constexpr):
    """The queries' components (rows, size) that meet these dimensions, where they are ``there``, scaled."""
    column = tl.arange(0, DIMS.size)
    inside = column < DIMS.count
    dim = tl.load(rebuilt.order + DIMS.firsts[PART] + column, inside, 0)
    first = (rows.pair * rows.each + rows.row % rows.each) * rebuilt.head_dim
    query = tl.load(rebuilt.query + first[:, None] + dim[None, :], there & inside[None, :], 0)
    return query.to(tl.float32) * (rebuilt.scaling * LOG2E)


@triton.jit
def _states(rebuilt, keys, tile, token, place, DIMS: tl.constexpr, PROGRAM: tl.constexpr):
    """Keys before RoPE of one head, ``place``: for each of the firsts (tokens, size)."""
    states = ()
    for part in tl.static_range(len(DIMS.firsts)):
        mean = _of_dims(rebuilt.mean, rebuilt, place, DIMS, part)
        states = states + (tl.full([8 * PROGRAM.tile, DIMS.size], 0.0, tl.float32) + mean[None, :],)
    for channel in tl.static_range(len(PROGRAM.keys)):
        sums = _decoded(rebuilt, keys, tile, place, DIMS, PROGRAM.keys[channel], PROGRAM)
        row = channel * rebuilt.places + place
        added = ()
        for part in tl.static_range(len(DIMS.firsts)):
            unit = _of_dims(rebuilt.unit, rebuilt, place, DIMS, part)
            loss = _of_dims(rebuilt.loss, rebuilt, row, DIMS, part)
            state = sums[part] * unit[None, :] + loss[None, :]
            if keys.scale is not None:
                state = state * affine(keys.scale, keys, tile, token, channel)[:, None]
            if keys.zero is not None:
                zeros = _of_dims(rebuilt.zeros, rebuilt, row, DIMS, part)
                state += affine(keys.zero, keys, tile, token, channel)[:, None] * zeros[None, :]
            added = added + (states[part] + state,)
        states = added
    return states


@triton.jit
def _decoded(rebuilt, keys, tile, place, DIMS: tl.constexpr, CHANNEL: tl.constexpr, PROGRAM: tl.constexpr):
    """Codes of a channel group times the decoder: for each of the firsts (tokens, size)."""
    column = tl.arange(0, DIMS.size)[None, :]
    sums = ()
    for _part in tl.static_range(len(DIMS.firsts)):
        sums = sums + (tl.full([8 * PROGRAM.tile, DIMS.size], 0.0, tl.float32),)
    for n in tl.static_range(len(CHANNEL.blocks)):
        codes = tokens_of(keys, tile, CHANNEL.blocks[n], PROGRAM.tile)
        component = tl.arange(0, CHANNEL.blocks[n].size)[:, None]
        there = (component < CHANNEL.blocks[n].count) & (column < DIMS.count)
        row = (place * keys.rank + CHANNEL.blocks[n].first + component) * rebuilt.width
        added = ()
        for part in tl.static_range(len(DIMS.firsts)):
            at = row + DIMS.firsts[part] + column
            state = tl.dot(codes, tl.load(rebuilt.decoder + at, there, 0), sums[part])
            if PROGRAM.precise:
                state = tl.dot(codes, tl.load(rebuilt.rest + at, there, 0), state)
            added = added + (state,)
        sums = added
    return sums


@triton.jit
def _of_dims(numbers, rebuilt, row, DIMS: tl.constexpr, PART: tl.constexpr):
    """One number for each dimension (size,), of a ``row`` of the table ``numbers``."""
    column = tl.arange(0, DIMS.size)
    return tl.load(numbers + row * rebuilt.width + DIMS.firsts[PART] + column, column < DIMS.count, 0)


@triton.jit
def _rotated(states, rebuilt, position, DIMS: tl.constexpr):
    """The two dimensions of every pair, turned to their ``position`` s."""
    column = tl.arange(0, DIMS.size)
    dim = tl.load(rebuilt.order + DIMS.firsts[0] + column, column < DIMS.count, 0)
    sign = tl.load(rebuilt.signs + DIMS.firsts[0] + column, column < DIMS.count, 0)
    at = position[:, None] * rebuilt.table_dims + dim[None, :]
    cos, sin = tl.load(rebuilt.cos + at).to(tl.float32), tl.load(rebuilt.sin + at).to(tl.float32) * sign[None, :]
    return states[0] * cos - states[1] * sin, states[1] * cos + states[0] * sin


@triton.jit
def _met(states, query, scores, PRECISE: tl.constexpr):
    """``scores`` (tokens, rows) + ``states`` (tokens, size) · ``query`` (rows, size)."""
    keys, _ = rounded(states, PRECISE)
    queries, _ = rounded(query, PRECISE)
    scores = tl.dot(keys[0], tl.trans(queries[0]), scores)
    if PRECISE:
        scores = tl.dot(keys[0], tl.trans(queries[1]), scores)
        scores = tl.dot(keys[1], tl.trans(queries[0]), scores)
    return scores
