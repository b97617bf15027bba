"""Vector operations on rows of fp32 numbers: exponentials, sums, scaling and rounding, as LLVM code."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

from llvmlite import ir
from numba import types
from numba.core import cgutils

from kvbench.kernels.cpu.llvm.vectors import (
    BYTES,
    FLOATS,
    I32,
    I64,
    LANES,
    WORDS,
    choose,
    emitted,
    fma,
    load,
    loop,
    masked,
    shuffle,
    splat,
    store,
    zero,
)

TILE = 64
"""Tokens of a row of scores: four vectors."""


def masked_floats(b: ir.IRBuilder, address: ir.Value, here: ir.Value) -> ir.Value:
    """16 numbers at ``address``, zeros where not ``here``."""
    get = masked(b, "load", WORDS)
    at = b.inttoptr(address, WORDS.as_pointer())
    return b.bitcast(b.call(get, [at, I32(1), here, zero()]), FLOATS)


def constant(value: float) -> ir.Constant:
    """``value`` in all lanes."""
    return ir.Constant(FLOATS, [value] * LANES)


def _row(b: ir.IRBuilder, address: ir.Value, kind: ir.Type = FLOATS) -> list[ir.Value]:
    return [load(b, address, I64(64 * part), kind) for part in range(TILE // LANES)]


def across_lanes(b: ir.IRBuilder, x: ir.Value, together: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """All lanes of ``x`` together."""
    for width in (8, 4, 2, 1):
        x = together(x, shuffle(b, x, x, [lane ^ width for lane in range(LANES)]))
    return b.extract_element(x, I32(0))


_POWER = (1.3276471e-3, 9.6755419e-3, 5.5507131e-2, 2.4022120e-1, 6.9314694e-1, 1.0000001)
"""A polynomial within 8e-8 of 2^x on [-1/2, 1/2] (weighted least squares, made minimax by reweighting)."""


def _exp(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e^x for x ≤ 0: 2 to the whole part of x · log2(e), times a polynomial of what is left."""
    floor = constant(-125.0)
    x = b.fmul(x, constant(math.log2(math.e)))
    x = b.select(b.fcmp_ordered(">", x, floor), x, floor)
    rint = cgutils.get_or_insert_function(b.module, ir.FunctionType(FLOATS, [FLOATS]), "llvm.rint.v16f32")
    rounded = b.call(rint, [x])
    f = b.fsub(x, rounded)
    p = constant(_POWER[0])
    for c in _POWER[1:]:
        p = fma(b, p, f, constant(c))
    whole = b.shl(b.fptosi(rounded, WORDS), ir.Constant(WORDS, [23] * LANES))
    return b.bitcast(b.add(b.bitcast(p, WORDS), whole), FLOATS)


@emitted
def largest(tx, row, start):  # type: ignore[no-untyped-def]
    """The largest of ``start`` and a row of 64."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        def larger(x: ir.Value, y: ir.Value) -> ir.Value:
            return b.select(b.fcmp_ordered(">", x, y), x, y)

        return across_lanes(b, reduce(larger, [splat(b, args[1]), *_row(b, args[0])]), larger)

    return types.float32(types.int64, types.float32), emit


@emitted
def exponentials(tx, row, top, sums):  # type: ignore[no-untyped-def]
    """A row of 64 scores becomes e^(score - top); 16 partial sums of them are added to ``sums``."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        row, top, sums = args[0], splat(b, args[1]), args[2]
        weights = [_exp(b, b.fsub(score, top)) for score in _row(b, row)]
        for part, p in enumerate(weights):
            store(b, p, row, 64 * part)
        store(b, reduce(b.fadd, [load(b, sums, I64(0), FLOATS), *weights]), sums, 0)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64), emit


@emitted
def add_scores(tx, dots, low, unit, offset, scale, zero, row, parts):  # type: ignore[no-untyped-def]
    """``parts`` · 16 scores += (high + low · LOW) · unit · scale + offset · zero, of two rows of integer ``dots``."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        dots, low, unit, offset, scale, zero, row, parts = args
        low, unit, offset = splat(b, low), splat(b, unit), splat(b, offset)

        def part(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            step = b.mul(index, I64(64))
            high, fine = (b.sitofp(load(b, at, step), FLOATS) for at in (dots, b.add(dots, I64(4 * TILE))))
            a, z, score = (load(b, at, step, FLOATS) for at in (scale, zero, row))
            dot = b.fmul(fma(b, fine, low, high), unit)
            store(b, fma(b, dot, a, fma(b, offset, z, score)), b.add(row, step), 0)
            return []

        loop(b, parts, [], part)
        return context.get_dummy_value()

    return types.void(types.int64, *[types.float32] * 3, *[types.int64] * 4), emit


@emitted
def add_mixed(tx, mixed, low_bytes, unit, total, columns):  # type: ignore[no-untyped-def]
    """total (``columns`` · 16) += (high · 256 + low) · unit, of two rows of integer sums, ``low_bytes`` apart."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        mixed, low_bytes, unit, total, columns = args
        unit, most = splat(b, unit), constant(256.0)

        def column(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            offset = b.mul(index, I64(64))
            high, low = (b.sitofp(load(b, place, offset), FLOATS) for place in (mixed, b.add(mixed, low_bytes)))
            place = b.add(total, offset)
            store(b, fma(b, fma(b, high, most, low), unit, load(b, place, I64(0), FLOATS)), place, 0)
            return []

        loop(b, columns, [], column)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int64, types.int64), emit


@emitted
def from_halves(tx, halves, count, out, row_bytes):  # type: ignore[no-untyped-def]
    """64 times ``count`` (1, 2 or 4) fp16 numbers side by side → ``count`` rows of 64 in fp32."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        halves, count, out, row_bytes = args
        narrow = ir.VectorType(ir.HalfType(), LANES)

        def some(b: ir.IRBuilder, count: int) -> None:
            for part in range(TILE // LANES):
                bits = load(b, halves, I64(2 * LANES * count * part), ir.VectorType(ir.IntType(16), LANES * count))
                for row in range(count):
                    one = shuffle(b, bits, bits, range(row, LANES * count, count))
                    store(b, b.fpext(b.bitcast(one, narrow), FLOATS), b.add(out, b.mul(row_bytes, I64(row))), 64 * part)

        choose(b, [count], [(1, 2, 4)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit


@emitted
def fill_row(tx, row, value, parts):  # type: ignore[no-untyped-def]
    """``parts`` · 16 numbers become ``value``."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        row, value, parts = args[0], splat(b, args[1]), args[2]

        def part(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            store(b, value, b.add(row, b.mul(index, I64(64))), 0)
            return []

        loop(b, parts, [], part)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64), emit


@emitted
def scale_row(tx, row, factor, out):  # type: ignore[no-untyped-def]
    """``out`` = a row of 64 · ``factor``."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        row, factor, out = args
        factor = splat(b, factor)
        for part, lanes in enumerate(_row(b, row)):
            store(b, b.fmul(lanes, factor), out, 64 * part)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64), emit


@emitted
def round_weights(tx, row, scale, step, high, low):  # type: ignore[no-untyped-def]
    """Weights p · scale · step in 0…65535 of a row of 64, as two unsigned bytes each."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        row, scale, step, high, low = args
        step, half = splat(b, step), constant(0.5)
        parts = zip(_row(b, row), _row(b, scale), strict=True)
        whole = [b.bitcast(b.fptosi(fma(b, b.fmul(p, a), step, half), WORDS), BYTES) for p, a in parts]
        # Of every word its lowest byte, then its second one: of two vectors at a time, and of these again.
        order = [4 * word + byte for byte in range(2) for word in range(2 * LANES)]
        first, second = shuffle(b, whole[0], whole[1], order), shuffle(b, whole[2], whole[3], order)
        halves = [[*range(start, start + 32), *range(64 + start, 96 + start)] for start in (0, 32)]
        store(b, shuffle(b, first, second, halves[1]), high, 0)
        store(b, shuffle(b, first, second, halves[0]), low, 0)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int64, types.int64), emit


@emitted
def weighted_sum(tx, row, zero, scale, lift, sums):  # type: ignore[no-untyped-def]
    """16 partial sums of p · (zero + scale · lift) of a row of 64 are added to ``sums``."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        row, zero, scale, lift, sums = args
        total, lift = load(b, sums, I64(0), FLOATS), splat(b, lift)
        for p, z, a in zip(_row(b, row), _row(b, zero), _row(b, scale), strict=True):
            total = fma(b, p, fma(b, a, lift, z), total)
        store(b, total, sums, 0)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3, types.float32, types.int64), emit
