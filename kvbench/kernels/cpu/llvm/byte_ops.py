"""Vector operations on codes: dot products of bytes, and sums across lanes, as LLVM code.

Codes are stored in *quads*: four tokens of one component share 32 bits, component after component. One 512-bit vector
holds 16 components of a quad. ``dot_bytes`` multiplies 64 unsigned codes by 64 signed bytes and adds groups of four,
which AVX512-VNNI does in one instruction (``vpdpbusd``). Elsewhere pairs of 16 bits are multiplied and added
(``pmaddwd``), or single words, with the same sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir
from numba import types

from kvbench.kernels.cpu.llvm.vectors import (
    BYTES,
    I32,
    I64,
    LANES,
    SHORTS,
    WORDS,
    called,
    choose,
    emit_prefetch,
    emitted,
    every,
    has_avx2,
    has_vnni,
    load,
    loop,
    shuffle,
    store,
    wide_or_halves,
    zero,
)

_TRANSPOSED = [16 * lane + 4 * column + row for lane in range(4) for row in range(4) for column in range(4)]
"""Within 128 bits: 4 components of 4 tokens each → 4 tokens of 4 components each."""


def dot_bytes(b: ir.IRBuilder, total: ir.Value, codes: ir.Value, signed: ir.Value) -> ir.Value:
    """``total`` (16 words) plus the sums of four products each of ``codes`` (u8) and ``signed`` (s8), both as words."""
    if has_vnni():
        return called(b, "llvm.x86.avx512.vpdpbusd.512", WORDS, total, codes, signed)
    if has_avx2():
        pairs = zip(_in_16_bits(b, codes, b.lshr), _in_16_bits(b, signed, b.ashr), strict=True)
        even, odd = (
            wide_or_halves(b, "llvm.x86.avx512.pmaddw.d.512", "llvm.x86.avx2.pmadd.wd", WORDS, *pair) for pair in pairs
        )
        return b.add(total, b.add(even, odd))
    wide = ir.VectorType(I32, LANES)
    for byte in range(4):  # byte k of every word, zero- and sign-extended
        up = ir.Constant(wide, [24 - 8 * byte] * LANES)
        down = ir.Constant(wide, [24] * LANES)
        total = b.add(total, b.mul(b.lshr(b.shl(codes, up), down), b.ashr(b.shl(signed, up), down)))
    return total


def _in_16_bits(b: ir.IRBuilder, words: ir.Value, down: Callable[..., ir.Value]) -> list[ir.Value]:
    """The bytes at even and at odd places as numbers of 16 bits; ``down`` shifts with their sign or without."""
    both, eight = b.bitcast(words, SHORTS), ir.Constant(SHORTS, [8] * SHORTS.count)
    return [down(b.shl(both, eight), eight), down(both, eight)]


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
                    return [dot_bytes(b, total, *pair) for pair, total in zip(pairs, sums, strict=True)]

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
                        new += [dot_bytes(b, total, lanes, codes) for total, codes in zip(old, vectors, strict=True)]
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
