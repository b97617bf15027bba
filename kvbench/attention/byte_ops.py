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
    emitted,
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


def _scores(rows: int) -> Any:
    @emitted
    def scores(tx, codes, query, out, vectors, quad_bytes, row_bytes, out_bytes):  # type: ignore[no-untyped-def]
        """out[row][token] (i32, 16 tokens) = Σ codes · query over ``vectors`` · 16 components.

        ``codes``: 4 quads, ``quad_bytes`` apart. ``query``: per row ``vectors`` vectors, every 4 bytes four times.
        """

        def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
            codes, query, out, vectors, quad_bytes, row_bytes, out_bytes = args

            sums = []
            for quad in range(4):  # one after the other: the processor foresees only what is read in order
                own = b.add(codes, b.mul(quad_bytes, I64(quad)))

                def step(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value], own: ir.Value = own) -> list[ir.Value]:
                    offset = b.mul(index, I64(64))
                    raw = b.bitcast(load(b, own, offset), BYTES)
                    turned = b.bitcast(shuffle(b, raw, raw, _TRANSPOSED), WORDS)
                    sides = [load(b, b.add(query, b.mul(row_bytes, I64(row))), offset) for row in range(rows)]
                    return [_dot_bytes(b, total, turned, side) for side, total in zip(sides, sums, strict=True)]

                sums.append(loop(b, vectors, [zero()] * rows, step))
            for row in range(rows):
                target = b.add(out, b.mul(out_bytes, I64(row)))
                store(b, _across(b, [own[row] for own in sums]), target, 0)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), emit

    return scores


def _mix(rows: int, columns: int) -> Any:
    @emitted
    def mix(tx, codes, weights, out, quads, quad_bytes, row_bytes, out_bytes):  # type: ignore[no-untyped-def]
        """out[row][component] (i32) = Σ codes · weights over ``quads`` · 4 tokens, for ``columns`` · 16 components."""

        def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
            codes, weights, out, quads, quad_bytes, row_bytes, out_bytes = args

            def step(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                base = b.add(codes, b.mul(index, quad_bytes))
                vectors = [load(b, base, I64(64 * column)) for column in range(columns)]
                new = []
                for row in range(rows):
                    word = load(b, b.add(weights, b.mul(row_bytes, I64(row))), b.mul(index, I64(4)), I32)
                    lanes = b.insert_element(ir.Constant(WORDS, ir.Undefined), word, I32(0))
                    lanes = shuffle(b, lanes, lanes, [0] * LANES)
                    new += [
                        _dot_bytes(b, sums[row * columns + column], vectors[column], lanes) for column in range(columns)
                    ]
                return new

            sums = loop(b, quads, [zero()] * (rows * columns), step)
            for row in range(rows):
                target = b.add(out, b.mul(out_bytes, I64(row)))
                for column in range(columns):
                    store(b, sums[row * columns + column], target, 64 * column)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), emit

    return mix


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

        def every(value: ir.Value) -> ir.Value:
            word = b.insert_element(ir.Constant(WORDS, ir.Undefined), b.trunc(value, I32), I32(0))
            return shuffle(b, word, word, [0] * LANES)

        bits = b.sub(b.shl(I64(1), field), I64(1))
        mask, by, kept = every(b.mul(bits, I64(0x01010101))), every(shift), every(keep)
        places = every(place), every(b.add(place, field))
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

# Rows come in pairs: the high and the low byte of a query or a weight. Six rows of four vectors fill the registers.
scores_2, scores_4, scores_6 = _scores(2), _scores(4), _scores(6)
mix_2, mix_4, mix_6 = _mix(2, 4), _mix(4, 4), _mix(6, 4)
mix_2_narrow, mix_4_narrow, mix_6_narrow = _mix(2, 1), _mix(4, 1), _mix(6, 1)
