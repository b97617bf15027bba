"""How Triton kernels unpack codes: in registers, from 32-bit words, by a plan that is part of the kernel.

Tokens stay where they are: token t of all groups of a tile is an operand of its own, since softmax does not mind the
order. Four tokens of a word come in pairs, two bytes apart, so that one shift and one mask serve two of them.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005, SIM108
# Triton compiles a language of its own that looks like Python: without starred tuples, and with types of its own.

from __future__ import annotations

import triton
import triton.language as tl

SUBNORMAL = tl.constexpr(2.0**24)
"""The bits of a code are the subnormal fp16 number code / 2^24, which tensor cores multiply exactly, as they do all
others: no conversion, of which the hardware does an eighth as many as of anything else."""


@triton.jit
def load_words(groups, column, inside, side, BLOCK: tl.constexpr):
    """What a block's codes are in, of ``groups`` (pointers) and ``column`` s: for each section a tuple of words.

    A field of 8 has two words, and a mixture's words come with the places of their fields in the codes.
    """
    words = ()
    for n in tl.static_range(len(BLOCK.sections)):
        if BLOCK.width == 0:
            component = BLOCK.first + column
            mixed = _load_mixed(groups, component, inside, side, BLOCK.sections[n].field, BLOCK.sections[n].aligned)
            words = words + (mixed,)
        elif BLOCK.width == 8:
            high = _load(groups + BLOCK.sections[n].half, column, inside, BLOCK.sections[n])
            words = words + ((_load(groups, column, inside, BLOCK.sections[n]), high),)
        else:
            words = words + ((_load(groups, column, inside, BLOCK.sections[n]),),)
    return words


@triton.jit
def codes_of(words, BLOCK: tl.constexpr, TOKEN: tl.constexpr):
    """The codes of token 0…7 of all groups in fp16, in units of 1 / ``SUBNORMAL``: their bits, as they are."""
    return _one(_pair(words, BLOCK, TOKEN), TOKEN).to(tl.float16, bitcast=True)


@triton.jit
def levels_of(words, column, side, BLOCK: tl.constexpr, TOKEN: tl.constexpr):
    """What the codes of token 0…7 of all groups name in the table of their width."""
    return tl.load(
        side.levels + 256 * width_of(column, side, BLOCK) + _one(_pair(words, BLOCK, TOKEN), TOKEN).to(tl.int32)
    )


@triton.jit
def width_of(column, side, BLOCK: tl.constexpr):
    """The width of a block, or those of a mixture's columns."""
    if BLOCK.width == 0:
        width = tl.load(side.table + BLOCK.first + column, column < BLOCK.count, 0)
    else:
        width: tl.constexpr = BLOCK.width
    return width


@triton.jit
def _load(groups, column, inside, SECTION: tl.constexpr):
    """The words of a section, or the bytes of components that share none."""
    if SECTION.bytewise:
        packed = _bytes(groups + SECTION.byte + SECTION.field * column, inside, SECTION.field)
        word = _spread(packed, SECTION.field)
    elif SECTION.aligned:  # words as such: only so does the compiler see that they are neighbours
        word = tl.load((groups + SECTION.byte).to(tl.pointer_type(tl.uint32)) + column, inside, 0)
    else:
        word = _bytes(groups + SECTION.byte + 4 * column, inside, 4)
    return word


@triton.jit
def _load_mixed(groups, component, inside, side, FIELD: tl.constexpr, ALIGNED: tl.constexpr):
    """Words of one field of a mixture, zero for components without it, and its places there; two words for 8."""
    row = side.table + (1 + 4 * (3 - (FIELD > 1) - (FIELD > 2) - (FIELD > 4))) * side.rank + component
    there = inside & ((tl.load(side.table + component, inside, 0) & FIELD) != 0)
    byte, shift = tl.load(row, there, 0), tl.load(row + side.rank, there, 0)
    place = tl.load(row + 2 * side.rank, there, 0)
    if FIELD == 8:
        words = _word(groups + byte, there, ALIGNED), _word(groups + byte + place, there, ALIGNED)
    elif FIELD == 4 or ALIGNED:
        words = _word(groups + byte, there, ALIGNED) >> shift, place
    else:
        bytewise = tl.load(row + 3 * side.rank, there, 0) != 0
        word = _bytes(groups + byte, there & (bytewise == 0), 4) >> shift
        words = tl.where(bytewise, _spread(_bytes(groups + byte, there & bytewise, FIELD), FIELD), word), place
    return words


@triton.jit
def _word(at, there, ALIGNED: tl.constexpr):
    """The words at ``at``."""
    if ALIGNED:
        word = tl.load(at.to(tl.pointer_type(tl.uint32)), there, 0)
    else:
        word = _bytes(at, there, 4)
    return word


@triton.jit
def _bytes(at, there, COUNT: tl.constexpr):
    """``COUNT`` bytes from ``at`` on, the lowest first."""
    word = tl.load(at, there, 0).to(tl.uint32)
    for n in tl.static_range(1, COUNT):
        word = word | (tl.load(at + n, there, 0).to(tl.uint32) << 8 * n)
    return word


@triton.jit
def _spread(packed, FIELD: tl.constexpr):
    """Eight tokens side by side, moved to where words have them."""
    word = packed & 0
    for t in tl.static_range(8):
        word = word | ((packed >> t * FIELD) & ((1 << FIELD) - 1)) << (t % 4 * 8 + t // 4 * FIELD)
    return word


@triton.jit
def _pair(words, BLOCK: tl.constexpr, TOKEN: tl.constexpr):
    """The codes of two tokens, ``TOKEN`` and the one two before or behind it, in the halves of a word."""
    pair = _field(words[0], BLOCK, BLOCK.sections[0], TOKEN)
    for n in tl.static_range(1, len(BLOCK.sections)):
        pair = pair | _field(words[n], BLOCK, BLOCK.sections[n], TOKEN)
    return pair


@triton.jit
def _field(words, BLOCK: tl.constexpr, SECTION: tl.constexpr, TOKEN: tl.constexpr):
    """One field of the codes of a pair, in its place."""
    first: tl.constexpr = TOKEN & 5
    mask: tl.constexpr = ((1 << SECTION.field) - 1) * 0x00010001
    if SECTION.field == 8:
        pair = (words[first // 4] >> first % 4 * 8) & mask
    elif BLOCK.width == 0:
        pair = ((words[0] >> (first % 4 * 8 + first // 4 * SECTION.field)) & mask) << words[1]
    else:
        pair = ((words[0] >> (first % 4 * 8 + first // 4 * SECTION.field + SECTION.shift)) & mask) << SECTION.place
    return pair


@triton.jit
def _one(pair, TOKEN: tl.constexpr):
    """The half of a pair that is the token's."""
    return (pair >> 16 if TOKEN & 2 else pair & 0xFFFF).to(tl.uint16)
