"""Vector operations on fp32 rows and tokens: dot products, weighted sums, exponentials and rounding, as LLVM code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from kvbench.attention.vectors import (
    FLOATS,
    I8,
    I32,
    I64,
    LANES,
    WORDS,
    emitted,
    lanes_left,
    load,
    loop,
    masked,
    shuffle,
    splat,
    store,
    zero,
)

_NONE = ir.Constant(FLOATS, [0.0] * LANES)


def _fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, total: ir.Value) -> ir.Value:
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.fma.v16f32"), [x, y, total])


def _masked_floats(b: ir.IRBuilder, address: ir.Value, here: ir.Value) -> ir.Value:
    get = masked(b, "load", WORDS)
    at = b.inttoptr(address, WORDS.as_pointer())
    return b.bitcast(b.call(get, [at, I32(1), here, zero()]), FLOATS)


def _sum_lanes(b: ir.IRBuilder, tokens: Sequence[ir.Value]) -> ir.Value:
    """Four vectors → their four sums, <4 x float>."""

    def fold(x: ir.Value, y: ir.Value, low: list[int], high: list[int]) -> ir.Value:
        return b.fadd(shuffle(b, x, y, low), shuffle(b, x, y, high))

    even = [*range(4), *range(8, 12), *range(16, 20), *range(24, 28)]
    odd = [lane + 4 for lane in even]
    four = fold(fold(tokens[0], tokens[1], even, odd), fold(tokens[2], tokens[3], even, odd), even, odd)
    pairs = fold(four, four, [lane ^ 0 for lane in range(16)], [lane ^ 2 for lane in range(16)])
    return fold(pairs, pairs, [0, 4, 8, 12], [1, 5, 9, 13])


def _exact_scores(rows: int) -> Any:
    @emitted
    def scores(tx, keys, query, out, rank, token_bytes, row_bytes, out_bytes):  # type: ignore[no-untyped-def]
        """out[row][token] (fp32, 4 tokens, ``token_bytes`` apart) = keys · query over ``rank`` components."""

        def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
            keys, query, out, rank, token_bytes, row_bytes, out_bytes = args

            vectors = b.ashr(b.add(rank, I64(LANES - 1)), I64(4))
            sums = []
            for token in range(4):  # one after the other: the processor foresees only what is read in order
                own = b.add(keys, b.mul(token_bytes, I64(token)))

                def step(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value], own: ir.Value = own) -> list[ir.Value]:
                    offset = b.mul(index, I64(64))
                    here = lanes_left(b, rank, b.mul(index, I64(LANES)), LANES)
                    key = _masked_floats(b, b.add(own, offset), here)
                    sides = [
                        _masked_floats(b, b.add(b.add(query, offset), b.mul(row_bytes, I64(row))), here)
                        for row in range(rows)
                    ]
                    return [_fma(b, side, key, total) for side, total in zip(sides, sums, strict=True)]

                sums.append(loop(b, vectors, [_NONE] * rows, step))
            for row in range(rows):
                store(b, _sum_lanes(b, [own[row] for own in sums]), b.add(out, b.mul(out_bytes, I64(row))), 0)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), emit

    return scores


def _exact_mix(rows: int, columns: int) -> Any:
    @emitted
    def mix(tx, values, weights, out, tokens, token_bytes, row_bytes, out_bytes, count):  # type: ignore[no-untyped-def]
        """out[row][component] (fp32) += weights · values over ``tokens``, for the ``count`` next components."""

        def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
            values, weights, out, tokens, token_bytes, row_bytes, out_bytes, count = args
            here = [lanes_left(b, count, I64(LANES * column), LANES) for column in range(columns)]
            places = [
                b.add(b.add(out, b.mul(out_bytes, I64(row))), I64(64 * column))
                for row in range(rows)
                for column in range(columns)
            ]
            start = [_masked_floats(b, place, here[index % columns]) for index, place in enumerate(places)]

            def step(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                base = b.add(values, b.mul(index, token_bytes))
                vectors = [_masked_floats(b, b.add(base, I64(64 * c)), here[c]) for c in range(columns)]
                new = []
                for row in range(rows):
                    at = b.add(weights, b.mul(row_bytes, I64(row)))
                    word = load(b, at, b.mul(index, I64(4)), ir.FloatType())
                    lanes = b.insert_element(ir.Constant(FLOATS, ir.Undefined), word, I32(0))
                    lanes = shuffle(b, lanes, lanes, [0] * LANES)
                    new += [_fma(b, lanes, vectors[c], sums[row * columns + c]) for c in range(columns)]
                return new

            put = masked(b, "store", WORDS)
            for index, total in enumerate(loop(b, tokens, start, step)):
                place = b.inttoptr(places[index], WORDS.as_pointer())
                b.call(put, [b.bitcast(total, WORDS), place, I32(1), here[index % columns]])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), emit

    return mix


exact_scores_1, exact_scores_2, exact_scores_3 = _exact_scores(1), _exact_scores(2), _exact_scores(3)
exact_mix_1, exact_mix_2, exact_mix_3 = _exact_mix(1, 4), _exact_mix(2, 4), _exact_mix(3, 4)


TILE = 64
"""Tokens of the rows below: four vectors."""


def _constant(value: float) -> ir.Constant:
    return ir.Constant(FLOATS, [value] * LANES)


def _row(b: ir.IRBuilder, address: ir.Value) -> list[ir.Value]:
    return [load(b, address, I64(64 * part), FLOATS) for part in range(TILE // LANES)]


def _fold(b: ir.IRBuilder, x: ir.Value, together: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """All lanes of ``x`` together."""
    for width in (8, 4, 2, 1):
        x = together(x, shuffle(b, x, x, [lane ^ width for lane in range(LANES)]))
    return b.extract_element(x, I32(0))


def _exp(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e^x for x ≤ 0 to about 2e-7: 2^n times a polynomial on [0, 1]."""
    floor = _constant(-87.0)
    x = b.select(b.fcmp_ordered(">", x, floor), x, floor)
    y = b.fmul(x, _constant(1.4426950408889634))
    n = b.sub(b.fptosi(y, WORDS), ir.Constant(WORDS, [1] * LANES))
    f = b.fsub(y, b.sitofp(n, FLOATS))
    p = _constant(1.8775767e-3)
    for c in (8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 9.9999994e-1):
        p = _fma(b, p, f, _constant(c))
    exponent = b.shl(b.add(n, ir.Constant(WORDS, [127] * LANES)), ir.Constant(WORDS, [23] * LANES))
    return b.fmul(p, b.bitcast(exponent, FLOATS))


@emitted
def largest(tx, row, start):  # type: ignore[no-untyped-def]
    """The largest of ``start`` and a row of 64."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        def larger(x: ir.Value, y: ir.Value) -> ir.Value:
            return b.select(b.fcmp_ordered(">", x, y), x, y)

        return _fold(b, reduce(larger, [splat(b, args[1]), *_row(b, args[0])]), larger)

    return types.float32(types.int64, types.float32), emit


@emitted
def exponentials(tx, row, top):  # type: ignore[no-untyped-def]
    """A row of 64 scores becomes e^(score - top); their sum."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        row, top = args[0], splat(b, args[1])
        found = [_exp(b, b.fsub(score, top)) for score in _row(b, row)]
        for part, p in enumerate(found):
            store(b, p, row, 64 * part)
        return _fold(b, reduce(b.fadd, found), b.fadd)

    return types.float32(types.int64, types.float32), emit


@emitted
def round_weights(tx, row, scale, offset, high, low, step, out):  # type: ignore[no-untyped-def]
    """Weights p · scale of a row of 64, times ``step``, as two signed bytes each; out (3,) fp32 receives

    Σ p · offset, and the sums of the high and of the low bytes. The low byte counts 1 / 254 of the high one.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        row, scale, offset, high, low, step, out = args
        step = splat(b, step)
        rest, whole, fine = _constant(0.0), zero(), zero()
        bytes_ = ir.VectorType(I8, LANES)
        parts = zip(_row(b, row), _row(b, scale), _row(b, offset), strict=True)
        for part, (p, a, z) in enumerate(parts):
            rest = _fma(b, p, z, rest)
            y = b.fmul(b.fmul(p, a), step)
            h = b.fptosi(b.fadd(y, _constant(0.5)), WORDS)
            off = b.fsub(y, b.sitofp(h, FLOATS))
            shifted = b.fptosi(_fma(b, off, _constant(254.0), _constant(128.5)), WORDS)
            f = b.sub(shifted, ir.Constant(WORDS, [128] * LANES))
            whole, fine = b.add(whole, h), b.add(fine, f)
            store(b, b.trunc(h, bytes_), high, LANES * part)
            store(b, b.trunc(f, bytes_), low, LANES * part)
        for place, total in enumerate((rest, b.sitofp(whole, FLOATS), b.sitofp(fine, FLOATS))):
            store(b, _fold(b, total, b.fadd), out, 4 * place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5, types.float32, types.int64), emit
