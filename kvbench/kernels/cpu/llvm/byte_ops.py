"""Vector operations on codes: dot products of bytes, sums across lanes, unpacking and table look-ups, as LLVM code.

Codes are stored in *quads*: four tokens of one component share 32 bits, component after component. One 512-bit vector
holds 16 components of a quad. ``dot_bytes`` multiplies 64 unsigned codes by 64 signed bytes and adds groups of four,
which AVX512-VNNI does in one instruction (``vpdpbusd``); elsewhere plain vector arithmetic does the same, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from kvbench.kernels.cpu.llvm.vectors import (
    BYTES,
    I32,
    I64,
    LANES,
    WORDS,
    choose,
    emit_prefetch,
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

MOST_SLOTS = 6
"""Most fields of different words that make up 16 codes."""

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

    What lies ``ahead`` of them is prefetched: tiles are too short for the hardware to foresee them.
    """
    here = load(b, base, offset)
    first = b.add(b.add(base, offset), ahead)
    for place in [first] if nibbles else [b.add(first, offset), b.add(first, b.add(offset, I64(64)))]:  # in order
        emit_prefetch(b, place)
    return [here, here] if nibbles else [here, load(b, base, b.add(offset, second))]


def _nibble(b: ir.IRBuilder, word: ir.Value, half: int) -> ir.Value:
    word = b.lshr(word, ir.Constant(WORDS, [4] * LANES)) if half else word
    return b.and_(word, ir.Constant(WORDS, [0x0F0F0F0F] * LANES))


def _transposed(b: ir.IRBuilder, words: ir.Value) -> ir.Value:
    raw = b.bitcast(words, BYTES)
    return b.bitcast(shuffle(b, raw, raw, _TRANSPOSED), WORDS)


@emitted
def scores(tx, codes, query, out, rows, vectors, group_bytes, row_bytes, out_bytes, nibbles, ahead):  # type: ignore[no-untyped-def]
    """out[row][token] (i32, 16 tokens) = Σ codes · query over ``vectors`` · 16 components: 1 to 3 rows of two bytes.

    ``codes``: two groups of 8 tokens, ``group_bytes`` apart, as quads of bytes or, with ``nibbles``, of 4 bits.
    ``query``: per row and byte ``vectors`` vectors, every 4 bytes four times.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        codes, query, out, rows, vectors, group_bytes, row_bytes, out_bytes, nibbles, ahead = args
        second = b.ashr(group_bytes, I64(1))

        def some(b: ir.IRBuilder, rows: int, nibbles: int) -> None:
            sums = []
            for group in range(2):
                base = b.add(codes, b.mul(group_bytes, I64(group)))

                def step(
                    b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value], base: ir.Value = base
                ) -> list[ir.Value]:
                    offset = b.mul(index, I64(64))
                    quads = [_transposed(b, words) for words in _quads(b, base, offset, second, ahead, bool(nibbles))]
                    quads = [_nibble(b, quad, half) for half, quad in enumerate(quads)] if nibbles else quads
                    sides = [load(b, b.add(query, b.mul(row_bytes, I64(row))), offset) for row in range(2 * rows)]
                    pairs = [(quad, side) for quad in quads for side in sides]
                    return [_dot_bytes(b, total, *pair) for pair, total in zip(pairs, sums, strict=True)]

                both = loop(b, vectors, [zero()] * (4 * rows), step)
                sums += [both[: 2 * rows], both[2 * rows :]]
            for row in range(2 * rows):
                target = b.add(out, b.mul(out_bytes, I64(row)))
                store(b, _across(b, [dots[row] for dots in sums]), target, 0)

        choose(b, [rows, nibbles], [(1, 2, 3), (0, 1)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), emit


@emitted
def mix(tx, codes, weights, out, rows, columns, groups, group_bytes, row_bytes, out_bytes, nibbles, flip, ahead):  # type: ignore[no-untyped-def]
    """out[row][component] (i32) = Σ (codes ^ flip) · weights over ``groups`` · 8 tokens, for 1 to 3 rows of two bytes

    and 1, 2 or 4 ``columns`` of 16 components. Codes are as in :func:`scores`; weights are unsigned, flipped codes
    signed.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        codes, weights, out, rows, columns, groups, group_bytes, row_bytes, out_bytes, nibbles, flip, ahead = args
        second, flipped = b.ashr(group_bytes, I64(1)), every(b, flip)

        def some(b: ir.IRBuilder, rows: int, columns: int, nibbles: int) -> None:
            def step(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                base = b.add(codes, b.mul(index, group_bytes))
                for half in range(2):
                    vectors = []
                    for column in range(columns):
                        place = I64(64 * column) if nibbles or not half else b.add(second, I64(64 * column))
                        word = load(b, base, place)
                        if not (nibbles and half):
                            emit_prefetch(b, b.add(b.add(base, place), ahead))
                        vectors.append(_nibble(b, word, half) if nibbles else b.xor(word, flipped))
                    new = []
                    for row in range(2 * rows):
                        at = b.add(b.add(weights, b.mul(row_bytes, I64(row))), I64(4 * half))
                        lanes = every(b, load(b, at, b.mul(index, I64(8)), I32))
                        old = sums[row * columns : (row + 1) * columns]
                        new += [_dot_bytes(b, total, lanes, codes) for total, codes in zip(old, vectors, strict=True)]
                    sums = new
                return sums

            sums = loop(b, groups, [zero()] * (2 * rows * columns), step)
            for row in range(2 * rows):
                target = b.add(out, b.mul(out_bytes, I64(row)))
                for column in range(columns):
                    store(b, sums[row * columns + column], target, 64 * column)

        choose(b, [rows, columns, nibbles], [(1, 2, 3), (1, 2, 4), (0, 1)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 12), emit


def _table(b: ir.IRBuilder, address: ir.Value, part: int) -> ir.Value:
    return load(b, address, I64(64 * part), BYTES)


def _permuted(b: ir.IRBuilder, codes: ir.Value, table: Sequence[ir.Value]) -> ir.Value:
    """``codes`` looked up in a ``table`` of 64, 128 or 256 bytes."""
    if len(table) == 1:
        one = ir.FunctionType(BYTES, [BYTES] * 2)
        permute = cgutils.get_or_insert_function(b.module, one, "llvm.x86.avx512.permvar.qi.512")
        return b.call(permute, [table[0], codes])
    two = ir.FunctionType(BYTES, [BYTES] * 3)
    permute = cgutils.get_or_insert_function(b.module, two, "llvm.x86.avx512.vpermi2var.qi.512")
    lower = b.call(permute, [table[0], codes, table[1]])
    if len(table) == 2:
        return lower
    upper = b.call(permute, [table[2], codes, table[3]])
    return b.select(b.icmp_signed("<", codes, ir.Constant(BYTES, [0] * 64)), upper, lower)


@emitted
def unpack_columns(  # type: ignore[no-untyped-def]
    tx, source, group_bytes, groups, out, quad_bytes, slots, windows, orders, starts, table, size
):
    """16 columns of ``groups`` · 8 tokens by their slots (:class:`~kvbench.kernels.cpu.unpack_plan.ColumnPlan`),
    as bytes of quads.

    If ``size``, they are looked up in the first ``size`` bytes of ``table``.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        source, group_bytes, groups, out, quad_bytes, slots, windows, orders, starts, table, size = args
        start = load(b, starts, I64(0))

        def some(b: ir.IRBuilder, size: int, slots: int) -> None:
            fetches = [_fetch(b, windows, orders, slot) for slot in range(slots)]
            parts = [_table(b, table, part) for part in range(size // 64)]

            def group(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                base = b.add(source, b.mul(index, group_bytes))
                quads = [start, start]
                for fetch in fetches:
                    quads = [b.or_(quad, field) for quad, field in zip(quads, fetch(b, base), strict=True)]
                target = b.add(out, b.mul(index, b.shl(quad_bytes, I64(1))))
                for place, quad in zip((target, b.add(target, quad_bytes)), quads, strict=True):
                    codes = b.bitcast(quad, BYTES)
                    store(b, _permuted(b, codes, parts) if parts else codes, place, 0)
                return []

            loop(b, groups, [], group)

        choose(b, [size, slots], [(0, 64, 128, 256), range(1, MOST_SLOTS + 1)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), emit


def _fetch(b: ir.IRBuilder, windows: ir.Value, orders: ir.Value, slot: int) -> Callable[..., list[ir.Value]]:
    """What a slot adds to the first and to the second quad of the group at an address."""
    first, count = (load(b, windows, I64(16 * slot + 8 * part), I64) for part in range(2))
    here = lanes_left(b, count, I64(0), LANES)
    words, *shifts, mask = (load(b, orders, I64(256 * slot + 64 * part)) for part in range(4))
    get = masked(b, "load", WORDS)
    two, three = ir.FunctionType(WORDS, [WORDS] * 2), ir.FunctionType(WORDS, [WORDS] * 3)
    pick = cgutils.get_or_insert_function(b.module, two, "llvm.x86.avx512.permvar.si.512")
    rotate = cgutils.get_or_insert_function(b.module, three, "llvm.fshl.v16i32")

    def fetch(b: ir.IRBuilder, base: ir.Value) -> list[ir.Value]:
        window = b.call(get, [b.inttoptr(b.add(base, first), WORDS.as_pointer()), I32(1), here, zero()])
        word = b.call(pick, [window, words])
        return [b.and_(b.call(rotate, [word, word, shift]), mask) for shift in shifts]

    return fetch


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
            parts = [_table(b, table, part) for part in range(size // 64)]

            def column(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                offset = b.mul(index, I64(64))
                here = lanes_left(b, count, offset, 64)

                def quad(b: ir.IRBuilder, number: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                    step = b.add(offset, b.mul(number, quad_bytes))
                    looked_up = _permuted(b, load(b, source, step, BYTES), parts)
                    b.call(put, [looked_up, b.inttoptr(b.add(target, step), BYTES.as_pointer()), I32(1), here])
                    return []

                return loop(b, quads, [], quad)

            loop(b, b.ashr(b.add(count, I64(63)), I64(6)), [], column)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), emit

    return look_up


look_up_64, look_up_256 = _look_up(64), _look_up(256)
