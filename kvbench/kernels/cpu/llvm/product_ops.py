"""Dot products of bytes with numbers of two bytes, by what the processor has, as LLVM code.

A query or a softmax weight is rounded to two bytes. AVX512-VNNI multiplies 64 bytes by 64 and adds groups of four in
one instruction (``vpdpbusd``): it takes the two bytes as two *factors*. AVX2 and AVX512-BW multiply numbers of 16 bits
and add pairs (``pmaddwd``): there both bytes are first joined, which halves the products, and the two factors are
those of the bytes at even and of the bytes at odd places. Elsewhere words are multiplied. All sums are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir
from numba import types

from kvbench.kernels.cpu.llvm.vectors import (
    I64,
    LANES,
    SHORTS,
    WORDS,
    called,
    constants,
    emitted,
    has_avx2,
    has_vnni,
    load,
    loop,
    store,
    wide_or_halves,
)

FINE_STEPS = 256
"""What the first byte of a query counts, in units of the second."""

_OFFSET = 128
"""What first bytes of weights are joined less of, so that 16 bits hold them with a sign."""


def in_pairs() -> bool:
    """Whether both bytes of a factor are joined."""
    return has_avx2() and not has_vnni()


def dot_bytes(b: ir.IRBuilder, total: ir.Value, codes: ir.Value, signed: ir.Value) -> ir.Value:
    """``total`` (16 words) plus the sums of four products each of ``codes`` (u8) and ``signed`` (s8), both as words."""
    if has_vnni():
        return called(b, "llvm.x86.avx512.vpdpbusd.512", WORDS, total, codes, signed)
    if has_avx2():
        return dot_pairs(b, total, as_pairs(b, codes, b.lshr), as_pairs(b, signed, b.ashr))
    for byte in range(4):  # byte k of every word, zero- and sign-extended
        up, down = constants(WORDS, 24 - 8 * byte), constants(WORDS, 24)
        total = b.add(total, b.mul(b.lshr(b.shl(codes, up), down), b.ashr(b.shl(signed, up), down)))
    return total


def as_pairs(b: ir.IRBuilder, words: ir.Value, down: Callable[..., ir.Value]) -> list[ir.Value]:
    """The bytes at even and at odd places as numbers of 16 bits; ``down`` shifts with their sign or without."""
    both, eight = b.bitcast(words, SHORTS), constants(SHORTS, 8)
    return [down(b.shl(both, eight), eight), down(both, eight)]


def dot_pairs(b: ir.IRBuilder, total: ir.Value, x: Sequence[ir.Value], y: Sequence[ir.Value]) -> ir.Value:
    """``total`` (16 words) plus the sums of four products each, of numbers at even and at odd places."""
    even, odd = (_paired(b, *each) for each in zip(x, y, strict=True))
    return b.add(total, b.add(even, odd))


def _paired(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """The sums of two products each of numbers of 16 bits, as words."""
    pairs = (b.bitcast(each, SHORTS) for each in (x, y))
    return wide_or_halves(b, "llvm.x86.avx512.pmaddw.d.512", "llvm.x86.avx2.pmadd.wd", WORDS, *pairs)


def query_sums(b: ir.IRBuilder, total: ir.Value) -> list[ir.Value]:
    """A sum over joined queries as two: of first bytes, and of second ones."""
    first = b.ashr(total, constants(WORDS, 8))
    return [first, b.sub(total, b.mul(first, constants(WORDS, FINE_STEPS)))]


def weight_sums(b: ir.IRBuilder, total: ir.Value, codes: ir.Value) -> list[ir.Value]:
    """A sum over joined weights as two; ``codes``: the sums of what they were multiplied with, pairs of 16 bits."""
    left_out = _paired(b, codes, constants(SHORTS, 1))
    total = b.add(total, b.mul(left_out, constants(WORDS, 256 * _OFFSET)))
    return [b.ashr(total, constants(WORDS, 8)), b.and_(total, constants(WORDS, 255))]


@emitted
def join_query(tx, first, second, vectors):  # type: ignore[no-untyped-def]
    """Rows of ``vectors`` · 64 ``first`` and ``second`` bytes of a query, both signed, become factors in place."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        def joined(high: ir.Value, low: ir.Value) -> list[ir.Value]:
            pairs = zip(as_pairs(b, high, b.ashr), as_pairs(b, low, b.ashr), strict=True)
            return [b.add(b.mul(x, constants(SHORTS, FINE_STEPS)), y) for x, y in pairs]

        _join(b, args, joined)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), emit


@emitted
def join_weights(tx, first, second, vectors):  # type: ignore[no-untyped-def]
    """Rows of ``vectors`` · 64 ``first`` and ``second`` bytes of weights, both unsigned, become factors in place."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        def joined(high: ir.Value, low: ir.Value) -> list[ir.Value]:
            pairs = zip(as_pairs(b, high, b.lshr), as_pairs(b, low, b.lshr), strict=True)
            return [b.add(b.shl(b.sub(x, constants(SHORTS, _OFFSET)), constants(SHORTS, 8)), y) for x, y in pairs]

        _join(b, args, joined)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), emit


def _join(b: ir.IRBuilder, rows: Sequence[ir.Value], joined: Callable[..., list[ir.Value]]) -> None:
    """Two rows of bytes, of as many vectors as a third argument says, become what ``joined`` makes of them."""
    *places, vectors = rows

    def step(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
        offset = b.mul(index, I64(4 * LANES))
        for place, pairs in zip(places, joined(*(load(b, place, offset) for place in places)), strict=True):
            store(b, pairs, b.add(place, offset), 0)
        return []

    if in_pairs():
        loop(b, vectors, [], step)
