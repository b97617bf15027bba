"""What tensor cores multiply in the Triton kernels: codes or levels, exact in fp16, and numbers in fp16 parts.

A :class:`Tile` is read in whole groups of eight tokens: by token of a group, or with all of its tokens side by side.
"""

# mypy: ignore-errors
# ruff: noqa: SIM108
# Triton compiles a language of its own that looks like Python: without starred tuples, and with types of its own.

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from kvbench.kernels.triton.unpack import SUBNORMAL, codes_of, levels_of, load_words, width_of

BOOST = tl.constexpr(32768.0)
"""What the largest fp16 operand of a product is scaled to, so that the small ones keep their digits."""


class Tile(NamedTuple):
    """``group`` (groups of eight tokens,) of a head in a row of the batch, which has ``tokens`` in all.

    ``start`` is the first token.
    """

    batch: tl.tensor
    head: tl.tensor
    group: tl.tensor
    start: tl.tensor
    tokens: tl.tensor


class Rows(NamedTuple):
    """``row`` s (rows,) of a program, (rows, 1) ``real``: the queries of a ``pair`` of batch row and head group.

    There are ``each`` queries, as often as a tile has blocks of tokens.
    """

    row: tl.tensor
    real: tl.tensor
    pair: tl.tensor
    each: tl.tensor


@triton.jit
def tile_at(batch, head, index, tokens, TILE: tl.constexpr):
    """Tile ``index`` of ``TILE`` groups."""
    return Tile(batch, head, index * TILE + tl.arange(0, TILE), index * (TILE * 8), tokens)


@triton.jit
def words_of(side, tile, BLOCK: tl.constexpr):
    """The words of a block's codes, (groups, columns)."""
    column = tl.arange(0, BLOCK.size)[None, :]
    inside = (tile.group * 8 < tile.tokens)[:, None] & (column < BLOCK.count)
    first = side.codes + tile.batch * side.row + tile.head * side.head
    return load_words(first + tile.group.to(tl.int64)[:, None] * side.group, column, inside, side, BLOCK)


@triton.jit
def operand_of(words, column, side, BLOCK: tl.constexpr, TOKEN: tl.constexpr):
    """Codes or levels of token 0…7 of all groups of a tile."""
    if side.levels is not None:
        operand = levels_of(words, column, side, BLOCK, TOKEN)
    else:
        operand = codes_of(words, BLOCK, TOKEN)
    return operand


@triton.jit
def tokens_of(side, tile, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Codes or levels of all tokens of a tile, (8 · TILE, columns), in their order."""
    words, column = words_of(side, tile, BLOCK), tl.arange(0, BLOCK.size)[None, :]
    zero, one = operand_of(words, column, side, BLOCK, 0), operand_of(words, column, side, BLOCK, 1)
    two, three = operand_of(words, column, side, BLOCK, 2), operand_of(words, column, side, BLOCK, 3)
    four, five = operand_of(words, column, side, BLOCK, 4), operand_of(words, column, side, BLOCK, 5)
    six, seven = operand_of(words, column, side, BLOCK, 6), operand_of(words, column, side, BLOCK, 7)
    even = tl.join(tl.join(zero, four), tl.join(two, six))  # (groups, columns, token & 4, token & 2)
    odd = tl.join(tl.join(one, five), tl.join(three, seven))
    together = tl.permute(tl.join(even, odd), (0, 2, 3, 4, 1))
    return tl.reshape(together, (8 * TILE, BLOCK.size))


@triton.jit
def by_token(scores, TILE: tl.constexpr, ROWS: tl.constexpr):
    """``scores`` (8 · TILE, ROWS) of all tokens of a tile as those of tokens 0…7 of the groups, (ROWS, TILE) each."""
    apart = tl.permute(tl.reshape(scores, (TILE, 2, 2, 2, ROWS)), (4, 0, 1, 2, 3))
    even, odd = tl.split(apart)
    zero_four, two_six = tl.split(even)
    one_five, three_seven = tl.split(odd)
    zero, four = tl.split(zero_four)
    one, five = tl.split(one_five)
    two, six = tl.split(two_six)
    three, seven = tl.split(three_seven)
    return zero, one, two, three, four, five, six, seven


@triton.jit
def rounded(number, PRECISE: tl.constexpr):
    """``number`` as one or two fp16 operands, and what they lack."""
    high = number.to(tl.float16)
    rest = number - high.to(tl.float32)
    if PRECISE:
        parts, rest = (high, rest.to(tl.float16)), tl.zeros(number.shape, tl.float32)
    else:
        parts = (high,)
    return parts, rest


@triton.jit
def dot(parts, codes, sums):
    """``sums`` + ``parts`` · ``codes``."""
    for n in tl.static_range(len(parts)):
        sums = tl.dot(parts[n], codes, sums)
    return sums


@triton.jit
def affine(numbers, side, tile, token, CHANNEL: tl.constexpr):
    """Scales or zeros of ``token`` s (tokens,)."""
    at = tile.batch * side.scale_row + tile.head * side.scale_head + token * side.scale_token + CHANNEL
    return tl.load(numbers + at, token < tile.tokens, 0).to(tl.float32)


@triton.jit
def factor(side, BLOCK: tl.constexpr):
    """The factors of a block's components, zero where they have no bits."""
    column = tl.arange(0, BLOCK.size)
    factors = tl.full([BLOCK.size], 1.0, tl.float32)
    if side.component is not None:
        factors = tl.load(side.component + BLOCK.first + column, column < BLOCK.count, 0).to(tl.float32)
    if BLOCK.width == 0:
        factors = tl.where(width_of(column, side, BLOCK) > 0, factors, 0.0)
    return factors


@triton.jit
def code_unit(side, BLOCK: tl.constexpr):
    """By what the operands of a block are multiplied to be codes or levels (size,)."""
    width = width_of(tl.arange(0, BLOCK.size), side, BLOCK)
    unit = tl.full([BLOCK.size], SUBNORMAL, tl.float32)
    if side.units is not None:
        unit = tl.load(side.units + width + tl.arange(0, BLOCK.size) * 0)
    return unit


@triton.jit
def middle(side, BLOCK: tl.constexpr):
    """The middle of a block's codes (size,): what rounding costs is made good there, as if codes lay around zero."""
    width = width_of(tl.arange(0, BLOCK.size), side, BLOCK)
    middles = tl.full([BLOCK.size], 0.0, tl.float32)
    if side.units is None:
        middles += tl.exp2(width + middles) / 2
    return middles
