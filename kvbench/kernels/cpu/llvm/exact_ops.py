"""Dot products with exact keys and weighted sums of exact values, stored in 32 or 16 bit, as LLVM code.

Numbers of 16 bit are widened in registers on their way in; everything is multiplied and added in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from llvmlite import ir
from numba import types

from kvbench.kernels.cpu.llvm.vectors import (
    FLOATS,
    I16,
    I32,
    I64,
    LANES,
    WORDS,
    choose,
    emit_prefetch,
    emitted,
    fma,
    lanes_left,
    load,
    loop,
    masked,
    shuffle,
    splat,
    store,
    zero,
)

FP32, FP16, BF16 = KINDS = range(3)
"""How numbers are stored."""
COLUMNS = 4 * LANES
"""Components of a step, and the most that a call of ``exact_mix`` adds up."""
_LINE = 64
"""Bytes of a cache line."""
_ROWS = (1, 2, 3)
_WIDTHS = (64, 128)
"""Usual sizes of heads: what is known before needs no loop, which takes a quarter off the time of a token."""

_HALVES, _SHORTS = ir.VectorType(ir.HalfType(), LANES), ir.VectorType(I16, LANES)
_NONE = ir.Constant(FLOATS, [0.0] * LANES)


def itemsize(kind: int) -> int:
    """Bytes of a number."""
    return 4 if kind == FP32 else 2


def read(b: ir.IRBuilder, address: ir.Value, kind: int, here: ir.Value | None = None) -> ir.Value:
    """16 numbers of ``kind`` at ``address`` as fp32; of those that are not ``here`` zero, and their memory is left."""
    stored = WORDS if kind == FP32 else _SHORTS
    if here is None:
        bits = load(b, address, I64(0), stored, align=itemsize(kind))
    else:
        place = b.inttoptr(address, stored.as_pointer())
        blank = zero() if kind == FP32 else ir.Constant(_SHORTS, [0] * LANES)
        bits = b.call(masked(b, "load", stored), [place, I32(itemsize(kind)), here, blank])
    if kind == FP16:
        return b.fpext(b.bitcast(bits, _HALVES), FLOATS)
    if kind == BF16:
        bits = b.shl(b.zext(bits, WORDS), ir.Constant(WORDS, [16] * LANES))
    return b.bitcast(bits, FLOATS)


def _sums_of_lanes(b: ir.IRBuilder, tokens: Sequence[ir.Value]) -> ir.Value:
    """Four vectors → their four sums, <4 x float>."""

    def fold(x: ir.Value, y: ir.Value, order: list[int], other: list[int]) -> ir.Value:
        return b.fadd(shuffle(b, x, y, order), shuffle(b, x, y, other))

    lanes = list(range(2 * LANES))
    quarters = [lanes[start : start + 4] for start in range(0, 2 * LANES, 4)]  # of both vectors

    def order(*picked: int) -> list[int]:
        return [lane for quarter in picked for lane in quarters[quarter]]

    # What keeps lanes in their places is a blend, which does not wait for the one port that shuffles.
    pairs = [fold(x, y, order(0, 5, 2, 7), order(1, 4, 3, 6)) for x, y in (tokens[:2], tokens[2:])]
    four = fold(pairs[0], pairs[1], order(0, 1, 6, 7), order(2, 3, 4, 5))
    halves = fold(four, four, lanes[:LANES], [lane ^ 2 for lane in range(LANES)])
    return fold(halves, halves, [0, 4, 8, 12], [1, 5, 9, 13])


def _smaller(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.select(b.icmp_signed("<", x, y), x, y)


def _fetch(b: ir.IRBuilder, address: ir.Value, size: int) -> None:
    """Prefetch ``size`` bytes."""
    for start in range(0, size, _LINE):
        emit_prefetch(b, b.add(address, I64(start)))


@emitted
def exact_scores(tx, keys, query, out, rows, tokens, components, token_bytes, row_bytes, out_bytes, ahead, kind):  # type: ignore[no-untyped-def]
    """out[row][token] (fp32) = keys · query over ``components``, for 1 to 3 rows and all ``tokens``.

    Keys are of ``kind``, ``token_bytes`` apart; what lies ``ahead`` bytes behind them is prefetched. Tokens are scored
    four at a time, the last four of them once more where that does not come out even; of fewer than four, numbers
    behind the last are written, too.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        keys, query, out, rows, tokens, components, token_bytes, row_bytes, out_bytes, ahead, kind = args
        last = b.sub(tokens, I64(1))
        steps = [b.mul(token_bytes, _smaller(b, I64(token), last)) for token in range(4)]
        latest = b.sub(tokens, I64(4))
        latest = b.select(b.icmp_signed(">", latest, I64(0)), latest, I64(0))
        whole = b.ashr(components, I64(6))
        rest = b.and_(components, I64(COLUMNS - 1))

        def chosen(b: ir.IRBuilder, rows: int, kind: int, width: int) -> None:
            size = itemsize(kind)

            def products(
                b: ir.IRBuilder, at: ir.Value, here: ir.Value | None, bases: list[ir.Value], sums: list[ir.Value]
            ) -> list[ir.Value]:
                """``sums`` (tokens, rows) with the products of 16 components from the one ``at`` on."""
                offset = b.mul(at, I64(size))
                vectors = [read(b, b.add(base, offset), kind, here) for base in bases]
                row_at = [b.add(b.add(query, b.mul(at, I64(4))), b.mul(row_bytes, I64(row))) for row in range(rows)]
                sides = [read(b, place, FP32, here) for place in row_at]
                pairs = product(vectors, sides)
                return [fma(b, side, key, total) for (key, side), total in zip(pairs, sums, strict=True)]

            def dots(b: ir.IRBuilder, bases: list[ir.Value]) -> list[ir.Value]:
                """Products of two tokens with all rows, a vector for each that remains to be summed."""

                def columns(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                    first = b.mul(index, I64(COLUMNS))
                    for base in bases:
                        _fetch(b, b.add(b.add(base, ahead), b.mul(first, I64(size))), COLUMNS * size)
                    for group in range(COLUMNS // LANES):
                        sums = products(b, b.add(first, I64(LANES * group)), None, bases, sums)
                    return sums

                def ragged(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                    behind = b.mul(index, I64(LANES))
                    at = b.add(b.mul(whole, I64(COLUMNS)), behind)
                    for base in bases:
                        _fetch(b, b.add(b.add(base, ahead), b.mul(at, I64(size))), LANES * size)
                    return products(b, at, lanes_left(b, rest, behind, LANES), bases, sums)

                sums = [_NONE] * (2 * rows)
                if width:
                    for index in range(width // COLUMNS):
                        sums = columns(b, I64(index), sums)
                    return sums
                sums = loop(b, whole, sums, columns)
                return loop(b, b.ashr(b.add(rest, I64(LANES - 1)), I64(4)), sums, ragged)

            def four(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                first = _smaller(b, b.mul(index, I64(4)), latest)
                base = b.add(keys, b.mul(token_bytes, first))
                # Two tokens at a time: they share loads of the query, and the sums of more fill smaller processors.
                places = [b.add(base, step) for step in steps]
                sums = [*dots(b, places[:2]), *dots(b, places[2:])]
                for row in range(rows):
                    at = b.add(b.add(out, b.mul(first, I64(4))), b.mul(out_bytes, I64(row)))
                    store(b, _sums_of_lanes(b, sums[row::rows]), at, 0)
                return []

            loop(b, b.ashr(b.add(tokens, I64(3)), I64(2)), [], four)

        width = I64(0)
        for usual in _WIDTHS:
            width = b.select(b.icmp_signed("==", components, I64(usual)), I64(usual), width)
        choose(b, [rows, kind, width], [_ROWS, KINDS, (0, *_WIDTHS)], chosen)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), emit


@emitted
def exact_mix(tx, values, weights, out, rows, tokens, token_bytes, row_bytes, out_bytes, count, ahead, kind):  # type: ignore[no-untyped-def]
    """out[row][component] (fp32) += weights · values over ``tokens``, for 1 to 3 rows.

    Components are the ``count`` next ones and no more than 64; values are of ``kind``, and what lies ``ahead`` bytes
    behind them is prefetched.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        values, weights, out, rows, tokens, token_bytes, row_bytes, out_bytes, count, ahead, kind = args
        columns = range(COLUMNS // LANES)

        def chosen(b: ir.IRBuilder, rows: int, kind: int, whole: int) -> None:
            size = itemsize(kind)
            here = [None if whole else lanes_left(b, count, I64(LANES * column), LANES) for column in columns]
            places = [
                (b.add(b.add(out, b.mul(out_bytes, I64(row))), I64(4 * LANES * column)), here[column])
                for row, column in product(range(rows), columns)
            ]

            def step(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                base = b.add(values, b.mul(index, token_bytes))
                _fetch(b, b.add(base, ahead), COLUMNS * size)
                vectors = [read(b, b.add(base, I64(size * LANES * c)), kind, here[c]) for c in columns]
                new = []
                for row in range(rows):
                    at = b.add(weights, b.mul(row_bytes, I64(row)))
                    weight = splat(b, load(b, at, b.mul(index, I64(4)), ir.FloatType()))
                    new += [fma(b, weight, vectors[c], sums[row * len(columns) + c]) for c in columns]
                return new

            start = [read(b, place, FP32, mask) for place, mask in places]
            for total, (place, mask) in zip(loop(b, tokens, start, step), places, strict=True):
                if mask is None:
                    store(b, total, place, 0)
                else:
                    at = b.inttoptr(place, WORDS.as_pointer())
                    b.call(masked(b, "store", WORDS), [b.bitcast(total, WORDS), at, I32(4), mask])

        whole = b.zext(b.icmp_signed(">=", count, I64(COLUMNS)), I64)
        choose(b, [rows, kind, whole], [_ROWS, KINDS, (0, 1)], chosen)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), emit
