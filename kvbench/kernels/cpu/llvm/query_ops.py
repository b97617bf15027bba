"""Queries times the scales of a block, rounded to two signed bytes as dot products read them, as LLVM code."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils

from kvbench.kernels.cpu.llvm.float_ops import across_lanes, constant, masked_floats
from kvbench.kernels.cpu.llvm.product_ops import FINE_STEPS
from kvbench.kernels.cpu.llvm.vectors import (
    BYTES,
    FLOATS,
    I32,
    I64,
    LANES,
    WORDS,
    choose,
    emitted,
    every,
    fma,
    lanes_left,
    load,
    loop,
    masked,
    shuffle,
    splat,
    store,
)

_STEPS = 127 * FINE_STEPS
"""The largest magnitude of a row in units of the second byte."""

_ROUNDING, _ROUNDING_BITS = 1.5 * 2**23 + 128, 0x4B400080
"""A number plus this has the bits of this plus the number, rounded to t: the lowest byte of the word is the second
byte of t with its highest bit flipped, the next one the first byte of t, (t + 128) // 256."""

_FIRST = [16 * lane + 4 * word + 1 for lane in range(4) for _ in range(4) for word in range(4)]
"""Those of four words, four times over: once for each token of a quad."""
_SECOND = [place - 1 for place in _FIRST]


@emitted
def round_query(tx, query, scale, scaled, rows, vectors, row_bytes, out, out_bytes, once, unit, total):  # type: ignore[no-untyped-def]
    """1 to 3 rows of ``query`` · ``scale`` of ``vectors`` · 16 columns as bytes: (high + low / FINE_STEPS) · unit.

    ``out``: a row of high and one of low bytes for each row. Those of 16 columns take 64: four columns of one token,
    then the same for three more tokens, then the next four columns; if ``once``, 16 follow one another. ``unit`` and
    ``total``, the sum of all columns as rounded, receive a number for each row. ``scaled`` is room for the products; it
    and ``query`` have ``row_bytes``.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        query, scale, scaled, rows, vectors, row_bytes, out, out_bytes, once, unit, total = args
        unary = ir.FunctionType(FLOATS, [FLOATS])
        magnitude = cgutils.get_or_insert_function(b.module, unary, "llvm.fabs.v16f32")

        def larger(x: ir.Value, y: ir.Value) -> ir.Value:
            return b.select(b.fcmp_ordered(">", x, y), x, y)

        def at(base: ir.Value, step: ir.Value, row: int) -> ir.Value:
            return b.add(base, b.mul(step, I64(row)))

        def some(b: ir.IRBuilder, rows: int, once: int) -> None:
            def product(b: ir.IRBuilder, index: ir.Value, most: list[ir.Value]) -> list[ir.Value]:
                offset = b.mul(index, I64(64))
                factor = load(b, scale, offset, FLOATS)
                products = [b.fmul(load(b, at(query, row_bytes, row), offset, FLOATS), factor) for row in range(rows)]
                for row, x in enumerate(products):
                    store(b, x, b.add(at(scaled, row_bytes, row), offset), 0)
                return [larger(old, b.call(magnitude, [x])) for old, x in zip(most, products, strict=True)]

            largest = loop(b, vectors, [constant(1e-30)] * rows, product)
            most = [across_lanes(b, each, larger) for each in largest]
            inverse = [splat(b, b.fdiv(ir.Constant(ir.FloatType(), float(_STEPS)), each)) for each in most]

            def both(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                offset, new = b.mul(index, I64(64)), []
                for row in range(rows):
                    product = load(b, at(scaled, row_bytes, row), offset, FLOATS)
                    bits = b.bitcast(fma(b, product, inverse[row], constant(_ROUNDING)), WORDS)
                    raw = b.bitcast(bits, BYTES)
                    flipped = b.xor(raw, ir.Constant(BYTES, [0x80] * 64))
                    target = b.add(at(out, out_bytes, 2 * row), b.ashr(offset, I64(2)) if once else offset)
                    store(b, shuffle(b, raw, raw, range(1, 64, 4) if once else _FIRST), target, 0)
                    second = shuffle(b, flipped, flipped, range(0, 64, 4) if once else _SECOND)
                    store(b, second, b.add(target, out_bytes), 0)
                    new.append(b.add(sums[row], bits))
                return new

            start = every(b, b.mul(vectors, I64(-_ROUNDING_BITS)))
            sums = loop(b, vectors, [start] * rows, both)
            for row in range(rows):
                total_steps = across_lanes(b, b.sitofp(sums[row], FLOATS), b.fadd)
                step = b.fmul(most[row], ir.Constant(ir.FloatType(), 1 / _STEPS))
                store(b, b.fmul(step, ir.Constant(ir.FloatType(), float(FINE_STEPS))), unit, 4 * row)
                store(b, b.fmul(total_steps, step), total, 4 * row)

        choose(b, [rows, once], [(1, 2, 3), (0, 1)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), emit


@emitted
def scaled_dots(tx, x, query, rows, count, row_bytes, factor, out):  # type: ignore[no-untyped-def]
    """out[row] = x · query · ``factor`` of ``count`` fp32 numbers each, for 1 to 3 rows of queries."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        x, query, rows, count, row_bytes, factor, out = args
        vectors = b.ashr(b.add(count, I64(LANES - 1)), I64(4))

        def some(b: ir.IRBuilder, rows: int) -> None:
            def step(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                offset, here = b.mul(index, I64(64)), lanes_left(b, count, b.mul(index, I64(LANES)), LANES)
                places = [b.add(query, b.mul(row_bytes, I64(row))) for row in range(rows)]
                lanes, *sides = (masked_floats(b, b.add(base, offset), here) for base in (x, *places))
                return [fma(b, lanes, side, total) for side, total in zip(sides, sums, strict=True)]

            for row, total in enumerate(loop(b, vectors, [constant(0.0)] * rows, step)):
                store(b, b.fmul(across_lanes(b, total, b.fadd), factor), out, 4 * row)

        choose(b, [rows], [(1, 2, 3)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5, types.float32, types.int64), emit


@emitted
def absorb(tx, decoder, query, out, dims, vectors, rows, query_bytes, out_bytes, scale, factor, in_fp16):  # type: ignore[no-untyped-def]
    """out[row] = query · decoder · ``scale`` · ``factor`` of ``vectors`` · 16 columns, for 1 to 3 rows of fp32.

    ``decoder`` (dims, columns) fp16 or fp32, ``query`` (rows, dims), ``scale`` (columns,).
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        decoder, query, out, dims, vectors, rows, query_bytes, out_bytes, scale, factor, in_fp16 = args
        factor = splat(b, factor)

        def some(b: ir.IRBuilder, rows: int, in_fp16: int) -> None:
            size = 2 if in_fp16 else 4
            kind, row_bytes = (
                ir.VectorType(ir.HalfType(), LANES) if in_fp16 else FLOATS,
                b.mul(vectors, I64(size * LANES)),
            )

            def columns(b: ir.IRBuilder, first: ir.Value, wide: int) -> None:
                """``wide`` vectors from vector ``first`` on."""
                base = b.add(decoder, b.mul(first, I64(size * LANES)))

                def dim(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                    at = b.add(base, b.mul(index, row_bytes))
                    basis = [load(b, at, I64(size * LANES * n), kind, size) for n in range(wide)]
                    basis = [b.fpext(lanes, FLOATS) for lanes in basis] if in_fp16 else basis
                    place = b.add(query, b.mul(index, I64(4)))
                    lanes = [splat(b, load(b, place, b.mul(query_bytes, I64(r)), ir.FloatType())) for r in range(rows)]
                    pairs = [(x, side) for x in lanes for side in basis]
                    return [fma(b, *pair, total) for pair, total in zip(pairs, sums, strict=True)]

                sums = loop(b, dims, [constant(0.0)] * (rows * wide), dim)
                place = b.mul(first, I64(4 * LANES))
                for n in range(wide):
                    factors = b.fmul(load(b, b.add(scale, place), I64(4 * LANES * n), FLOATS), factor)
                    for r in range(rows):
                        target = b.add(b.add(out, b.mul(out_bytes, I64(r))), place)
                        store(b, b.fmul(sums[r * wide + n], factors), target, 4 * LANES * n)

            def four(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                columns(b, b.mul(index, I64(4)), 4)
                return []

            def one(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                columns(b, b.add(b.and_(vectors, I64(-4)), index), 1)
                return []

            loop(b, b.ashr(vectors, I64(2)), [], four)
            loop(b, b.and_(vectors, I64(3)), [], one)

        choose(b, [rows, in_fp16], [(1, 2, 3), (0, 1)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9, types.float32, types.int64), emit


@emitted
def widen(tx, halves, out, count):  # type: ignore[no-untyped-def]
    """``count`` fp16 numbers as fp32."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        halves, out, count = args
        bits, narrow = ir.VectorType(ir.IntType(16), LANES), ir.VectorType(ir.HalfType(), LANES)

        def step(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            lanes = load(b, halves, b.mul(index, I64(2 * LANES)), narrow)
            store(b, b.fpext(lanes, FLOATS), b.add(out, b.mul(index, I64(4 * LANES))), 0)
            return []

        loop(b, b.ashr(count, I64(4)), [], step)
        whole = b.and_(count, I64(-LANES))
        with b.if_then(b.icmp_signed("<", whole, count)):
            here = lanes_left(b, count, whole, LANES)
            place = b.inttoptr(b.add(halves, b.mul(whole, I64(2))), bits.as_pointer())
            rest = b.call(masked(b, "load", bits), [place, I32(1), here, ir.Constant(bits, [0] * LANES)])
            wide = b.bitcast(b.fpext(b.bitcast(rest, narrow), FLOATS), WORDS)
            target = b.inttoptr(b.add(out, b.mul(whole, I64(4))), WORDS.as_pointer())
            b.call(masked(b, "store", WORDS), [wide, target, I32(1), here])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), emit
