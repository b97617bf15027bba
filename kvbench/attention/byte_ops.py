"""Vector operations on codes: dot products of bytes, sums across lanes, unpacking and table look-ups, as LLVM code.

Codes are stored in *quads*: four tokens of one component share 32 bits, component after component. One 512-bit vector
holds 16 components of a quad. ``dot_bytes`` multiplies 64 unsigned codes by 64 signed bytes and adds groups of four,
which AVX512-VNNI does in one instruction (``vpdpbusd``); elsewhere plain vector arithmetic does the same, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from kvbench.attention.vectors import (
    BYTES,
    I32,
    I64,
    LANES,
    WORDS,
    ask,
    choose,
    emitted,
    every,
    has_vnni,
    lanes_left,
    load,
    loop,
    masked,
    shuffle,
    store,
    zero,
)

_TRANSPOSED = [16 * lane + 4 * column + row for lane in range(4) for row in range(4) for column in range(4)]
"""Within 128 bits: 4 components of 4 tokens each → 4 tokens of 4 components each."""


def _dot_bytes(b: ir.IRBuilder, total: ir.Value, codes: ir.Value, signed: ir.Value) -> ir.Value:
    """``total`` (16 words) plus the sums of four products each of ``codes`` (u8) and ``signed`` (s8), both as words."""
    if has_vnni():
        kind = ir.FunctionType(WORDS, [WORDS] * 3)
        return b.call(
            cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx512.vpdpbusd.512"), [total, codes, signed]
        )
    wide = ir.VectorType(I32, LANES)
    for byte in range(4):  # byte k of every word, zero- and sign-extended
        up = ir.Constant(wide, [24 - 8 * byte] * LANES)
        down = ir.Constant(wide, [24] * LANES)
        total = b.add(total, b.mul(b.lshr(b.shl(codes, up), down), b.ashr(b.shl(signed, up), down)))
    return total


def _across(b: ir.IRBuilder, quads: Sequence[ir.Value]) -> ir.Value:
    """Four vectors, each with the sums of 4 tokens in 4 parts of 128 bits → one vector of 16 tokens' whole sums."""

    def fold(x: ir.Value, y: ir.Value) -> ir.Value:
        even = shuffle(b, x, y, [*range(4), *range(8, 12), *range(16, 20), *range(24, 28)])
        odd = shuffle(b, x, y, [*range(4, 8), *range(12, 16), *range(20, 24), *range(28, 32)])
        return b.add(even, odd)

    return fold(fold(quads[0], quads[1]), fold(quads[2], quads[3]))


def _quads(
    b: ir.IRBuilder, base: ir.Value, offset: ir.Value, second: ir.Value, ahead: ir.Value, nibbles: bool
) -> list[ir.Value]:
    """16 components of the two quads of 8 tokens: bytes, the other quad ``second`` bytes on, or nibbles of one word.

    What lies ``ahead`` of them is asked for: tiles are too short for the hardware to foresee them.
    """
    here = load(b, base, offset)
    first = b.add(b.add(base, offset), ahead)
    for place in [first] if nibbles else [b.add(first, offset), b.add(first, b.add(offset, I64(64)))]:  # in order
        ask(b, place)
    return [here, here] if nibbles else [here, load(b, base, b.add(offset, second))]


def _nibble(b: ir.IRBuilder, word: ir.Value, half: int) -> ir.Value:
    word = b.lshr(word, ir.Constant(WORDS, [4] * LANES)) if half else word
    return b.and_(word, ir.Constant(WORDS, [0x0F0F0F0F] * LANES))


def _turned(b: ir.IRBuilder, words: ir.Value) -> ir.Value:
    raw = b.bitcast(words, BYTES)
    return b.bitcast(shuffle(b, raw, raw, _TRANSPOSED), WORDS)


@emitted
def scores(tx, codes, query, out, rows, vectors, group_bytes, row_bytes, out_bytes, nibbles):  # type: ignore[no-untyped-def]
    """out[row][token] (i32, 16 tokens) = Σ codes · query over ``vectors`` · 16 components: 1 to 3 rows of two bytes.

    ``codes``: two groups of 8 tokens, ``group_bytes`` apart, as quads of bytes or, with ``nibbles``, of 4 bits.
    ``query``: per row and byte ``vectors`` vectors, every 4 bytes four times.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        codes, query, out, rows, vectors, group_bytes, row_bytes, out_bytes, nibbles = args
        second, ahead = b.ashr(group_bytes, I64(1)), b.mul(group_bytes, I64(8))

        def some(b: ir.IRBuilder, rows: int, nibbles: int) -> None:
            sums = []
            for group in range(2):
                own = b.add(codes, b.mul(group_bytes, I64(group)))

                def step(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value], own: ir.Value = own) -> list[ir.Value]:
                    offset = b.mul(index, I64(64))
                    quads = [_turned(b, words) for words in _quads(b, own, offset, second, ahead, bool(nibbles))]
                    quads = [_nibble(b, quad, half) for half, quad in enumerate(quads)] if nibbles else quads
                    sides = [load(b, b.add(query, b.mul(row_bytes, I64(row))), offset) for row in range(2 * rows)]
                    pairs = [(quad, side) for quad in quads for side in sides]
                    return [_dot_bytes(b, total, *pair) for pair, total in zip(pairs, sums, strict=True)]

                found = loop(b, vectors, [zero()] * (4 * rows), step)
                sums += [found[: 2 * rows], found[2 * rows :]]
            for row in range(2 * rows):
                target = b.add(out, b.mul(out_bytes, I64(row)))
                store(b, _across(b, [own[row] for own in sums]), target, 0)

        choose(b, [rows, nibbles], [(1, 2, 3), (0, 1)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), emit


@emitted
def mix(tx, codes, weights, out, rows, columns, groups, group_bytes, row_bytes, out_bytes, nibbles, flip):  # type: ignore[no-untyped-def]
    """out[row][component] (i32) = Σ (codes ^ flip) · weights over ``groups`` · 8 tokens, for 1 to 3 rows of two bytes

    and 1, 2 or 4 ``columns`` of 16 components. Codes are as in :func:`scores`; weights are unsigned, flipped codes
    signed.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        codes, weights, out, rows, columns, groups, group_bytes, row_bytes, out_bytes, nibbles, flip = args
        second, ahead, flipped = b.ashr(group_bytes, I64(1)), b.mul(group_bytes, I64(8)), every(b, flip)

        def some(b: ir.IRBuilder, rows: int, columns: int, nibbles: int) -> None:
            def step(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                base = b.add(codes, b.mul(index, group_bytes))
                for half in range(2):
                    vectors = []
                    for column in range(columns):
                        place = I64(64 * column) if nibbles or not half else b.add(second, I64(64 * column))
                        word = load(b, base, place)
                        if not (nibbles and half):
                            ask(b, b.add(b.add(base, place), ahead))
                        vectors.append(_nibble(b, word, half) if nibbles else b.xor(word, flipped))
                    new = []
                    for row in range(2 * rows):
                        at = b.add(b.add(weights, b.mul(row_bytes, I64(row))), I64(4 * half))
                        lanes = every(b, load(b, at, b.mul(index, I64(8)), I32))
                        own = sums[row * columns : (row + 1) * columns]
                        new += [_dot_bytes(b, total, lanes, codes) for total, codes in zip(own, vectors, strict=True)]
                    sums = new
                return sums

            sums = loop(b, groups, [zero()] * (2 * rows * columns), step)
            for row in range(2 * rows):
                target = b.add(out, b.mul(out_bytes, I64(row)))
                for column in range(columns):
                    store(b, sums[row * columns + column], target, 64 * column)

        choose(b, [rows, columns, nibbles], [(1, 2, 3), (1, 2, 4), (0, 1)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), emit


def _table(b: ir.IRBuilder, address: ir.Value, part: int) -> ir.Value:
    return load(b, address, I64(64 * part), BYTES)


def _permute(b: ir.IRBuilder, codes: ir.Value, address: ir.Value, size: int) -> ir.Value:
    """``codes`` looked up in the table of ``size`` bytes (64 or 256) at ``address``."""
    if size == 64:
        one = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(BYTES, [BYTES] * 2), "llvm.x86.avx512.permvar.qi.512"
        )
        return b.call(one, [_table(b, address, 0), codes])
    two = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(BYTES, [BYTES] * 3), "llvm.x86.avx512.vpermi2var.qi.512"
    )
    lower = b.call(two, [_table(b, address, 0), codes, _table(b, address, 1)])
    upper = b.call(two, [_table(b, address, 2), codes, _table(b, address, 3)])
    return b.select(b.icmp_signed("<", codes, ir.Constant(BYTES, [0] * 64)), upper, lower)


@emitted
def spread_words(  # type: ignore[no-untyped-def]
    tx, source, low, count, place, field, shift, keep, groups, group_bytes, quad_bytes
):
    """Bits of packed words to bytes of quads: low[i] = (low[i] & keep) | ((source[i] >> place) & mask) << shift.

    The next quad gets the same from ``place + field``; the mask has ``field`` bits in each byte. ``count`` words of
    each of ``groups`` packing groups, none beyond.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        source, low, count, place, field, shift, keep, groups, group_bytes, quad_bytes = args

        bits = b.sub(b.shl(I64(1), field), I64(1))
        mask, by, kept = every(b, b.mul(bits, I64(0x01010101))), every(b, shift), every(b, keep)
        places = every(b, place), every(b, b.add(place, field))
        get, put = masked(b, "load", WORDS), masked(b, "store", WORDS)

        def group(b: ir.IRBuilder, number: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            start = b.add(source, b.mul(number, group_bytes))
            base = b.add(low, b.mul(number, b.shl(quad_bytes, I64(1))))

            def column(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                offset = b.mul(index, I64(64))
                here = lanes_left(b, count, b.mul(index, I64(LANES)), LANES)
                packed = b.call(get, [b.inttoptr(b.add(start, offset), WORDS.as_pointer()), I32(1), here, zero()])
                for half, first in enumerate(places):
                    target = b.add(b.add(base, offset), b.mul(quad_bytes, I64(half)))
                    to = b.inttoptr(target, WORDS.as_pointer())
                    old = b.and_(b.call(get, [to, I32(1), here, zero()]), kept)
                    new = b.shl(b.and_(b.lshr(packed, first), mask), by)
                    b.call(put, [b.or_(old, new), to, I32(1), here])
                return []

            return loop(b, b.ashr(b.add(count, I64(LANES - 1)), I64(4)), [], column)

        loop(b, groups, [], group)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), emit


def _look_up(size: int) -> Any:
    @emitted
    def look_up(tx, source, target, count, table, quads, quad_bytes):  # type: ignore[no-untyped-def]
        """target[i] = table[source[i]] for ``count`` bytes of each of ``quads``; reads, but never writes, beyond."""

        def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
            source, target, count, table, quads, quad_bytes = args
            put = masked(b, "store", BYTES)

            def column(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                offset = b.mul(index, I64(64))
                here = lanes_left(b, count, offset, 64)

                def quad(b: ir.IRBuilder, number: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                    step = b.add(offset, b.mul(number, quad_bytes))
                    found = _permute(b, load(b, source, step, BYTES), table, size)
                    b.call(put, [found, b.inttoptr(b.add(target, step), BYTES.as_pointer()), I32(1), here])
                    return []

                return loop(b, quads, [], quad)

            loop(b, b.ashr(b.add(count, I64(63)), I64(6)), [], column)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), emit

    return look_up


look_up_64, look_up_256 = _look_up(64), _look_up(256)
