"""Vector operations that rebuild keys from codes, rotate them and score them, as LLVM code.

A tile of 64 tokens is a row of four vectors. Its bytes are first brought into an order of *steps*: four columns of all
64 tokens, 256 bytes, a word a token. A word times four signed bytes of a decoder, summed, is then one instruction of
AVX512-VNNI (``vpdpbusd``) for 16 tokens; AVX2 and AVX512-BW multiply pairs of 16 bits, anything else words.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir
from numba import types

from kvbench.kernels.cpu.llvm import matrix_ops
from kvbench.kernels.cpu.llvm.float_ops import TILE
from kvbench.kernels.cpu.llvm.matrix_ops import STEPS, has_matrices
from kvbench.kernels.cpu.llvm.product_ops import dot_bytes
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
    has_vnni,
    lanes_left,
    load,
    loop,
    masked,
    shuffle,
    splat,
    store,
    zero,
)

DIMS = matrix_ops.DIMS if has_matrices() else 8 if has_vnni() else 4
"""Key dimensions that are rebuilt at once."""
TOKENS = TILE if has_matrices() else 32 if has_vnni() else 16
"""Tokens that they are rebuilt for at once: of vectors, sums fill half of the registers, bytes half of the first-level
cache."""
COLUMNS = 4 * STEPS if has_matrices() else 4
"""Columns of a decoder's factors that lie side by side for each dimension."""
STEP = 4 * TILE
"""Bytes of four columns of a tile, and of a row of 64 numbers."""

_VECTORS = TILE // LANES
_TRANSPOSED = [16 * lane + 4 * column + row for lane in range(4) for row in range(4) for column in range(4)]
"""Within 128 bits: 4 columns of 4 tokens each → 4 tokens of 4 columns each."""


def _shifted(kind: ir.VectorType, bits: int) -> ir.Constant:
    return ir.Constant(kind, [bits] * kind.count)


@emitted
def into_steps(tx, tile, quad_bytes, out):  # type: ignore[no-untyped-def]
    """16 columns of a tile of bytes in quads, which are ``quad_bytes`` apart, → four steps of 4 columns."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        tile, quad_bytes, out = args
        for part in range(_VECTORS):
            quads = []
            for quad in range(4):
                raw = load(b, tile, b.mul(quad_bytes, I64(4 * part + quad)), BYTES)
                quads.append(b.bitcast(shuffle(b, raw, raw, _TRANSPOSED), WORDS))
            for step, tokens in enumerate(_lanes_transposed(b, quads)):
                store(b, tokens, out, STEP * step + 64 * part)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), emit


def _lanes_transposed(b: ir.IRBuilder, quads: Sequence[ir.Value]) -> list[ir.Value]:
    """Four vectors of four parts of 128 bits each → the first parts of all, the second parts …"""

    def parts(x: ir.Value, y: ir.Value, first: int) -> ir.Value:
        """Two parts of each, from part ``first`` on, every second one."""
        lanes = [4 * part + lane for part in (first, first + 2) for lane in range(4)]
        return shuffle(b, x, y, [*lanes, *(LANES + lane for lane in lanes)])

    even = [parts(quads[0], quads[1], 0), parts(quads[2], quads[3], 0)]
    odd = [parts(quads[0], quads[1], 1), parts(quads[2], quads[3], 1)]
    # Each now holds parts 0, 2 (or 1, 3) of one quad, then of the next.
    return [parts(pair[0], pair[1], first) for pair, first in ((even, 0), (odd, 0), (even, 1), (odd, 1))]


@emitted
def rebuild(  # type: ignore[no-untyped-def]
    tx, tile, steps, coarse, fine, decoder, start, unit, mean, zero_weight, affine, scaled, first, out
):
    """:data:`DIMS` key dimensions of :data:`TOKENS` tokens, fp32, from a ``tile`` in steps: as many rows at ``out``.

    A row is ``unit`` · (start + Σ bytes · decoder). ``steps`` are offsets in the tile: ``coarse`` ones whose sums count
    256 times, then ``fine`` ones; ``decoder`` has four signed bytes for each dimension a step. If ``scaled``, that is
    multiplied by the first row at ``affine``, and the second one times ``zero_weight`` is added. If ``first``, the
    ``mean`` is added, else what the rows hold. ``start`` to ``zero_weight`` are addresses of a number a dimension.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        tile, steps, coarse, fine, decoder, start, unit, mean, zero_weight, affine, scaled, first, out = args
        vectors = range(TOKENS // LANES)

        def walk(sums: list[ir.Value], count: ir.Value, steps: ir.Value, decoder: ir.Value) -> list[ir.Value]:
            def step(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                base = b.add(tile, load(b, steps, b.mul(index, I64(8)), I64))
                at = b.add(decoder, b.mul(index, I64(4 * DIMS)))
                codes = [load(b, base, I64(64 * vector)) for vector in vectors]
                new = []
                for dim in range(DIMS):
                    signed = every(b, load(b, at, I64(4 * dim), I32))
                    totals = sums[dim * len(vectors) : (dim + 1) * len(vectors)]
                    new += [dot_bytes(b, total, each, signed) for total, each in zip(totals, codes, strict=True)]
                return new

            return loop(b, count, sums, step)

        def finish(b: ir.IRBuilder, scaled: int, first: int) -> None:
            for dim in range(DIMS):
                numbers = [splat(b, load(b, at, I64(4 * dim), ir.FloatType())) for at in (unit, mean, zero_weight)]
                for vector in vectors:
                    state, place = b.sitofp(sums[dim * len(vectors) + vector], FLOATS), STEP * dim + 64 * vector
                    old = numbers[1] if first else load(b, out, I64(place), FLOATS)
                    scales = (load(b, affine, I64(STEP * row + 64 * vector), FLOATS) for row in range(2 * scaled))
                    store(b, _finished(b, state, numbers, old, tuple(scales)), out, place)

        if has_matrices():  # multiplied by them instead
            return context.get_dummy_value()
        sums = walk([zero()] * (DIMS * len(vectors)), coarse, steps, decoder)
        starts = [every(b, load(b, start, I64(4 * dim), I32)) for dim in range(DIMS)]
        sums = [b.add(b.shl(x, _shifted(WORDS, 8)), starts[i // len(vectors)]) for i, x in enumerate(sums)]
        decoder, steps = b.add(decoder, b.mul(coarse, I64(4 * DIMS))), b.add(steps, b.mul(coarse, I64(8)))
        sums = walk(sums, fine, steps, decoder)
        choose(b, [scaled, first], [(0, 1), (0, 1)], finish)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 13), emit


@emitted
def finish(tx, sums, start, unit, mean, zero_weight, affine, scaled, first, out):  # type: ignore[no-untyped-def]
    """:func:`rebuild` from its sums on: at ``sums`` :data:`DIMS` rows of 64 words that count 256 times, then as many
    others."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        sums, start, unit, mean, zero_weight, affine, scaled, first, out = args

        def some(b: ir.IRBuilder, scaled: int, first: int) -> None:
            def dim(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                place, row = b.mul(index, I64(4)), b.mul(index, I64(STEP))
                begin = every(b, load(b, start, place, I32))
                numbers = [splat(b, load(b, at, place, ir.FloatType())) for at in (unit, mean, zero_weight)]
                for part in range(_VECTORS):
                    at = b.add(row, I64(64 * part))
                    coarse, fine = (load(b, sums, b.add(at, I64(DIMS * STEP * byte))) for byte in range(2))
                    state = b.sitofp(b.add(b.add(b.shl(coarse, _shifted(WORDS, 8)), fine), begin), FLOATS)
                    old = numbers[1] if first else load(b, out, at, FLOATS)
                    scales = (load(b, affine, I64(STEP * which + 64 * part), FLOATS) for which in range(2 * scaled))
                    store(b, _finished(b, state, numbers, old, tuple(scales)), b.add(out, at), 0)
                return []

            loop(b, I64(DIMS), [], dim)

        choose(b, [scaled, first], [(0, 1), (0, 1)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), emit


def _finished(
    b: ir.IRBuilder, state: ir.Value, numbers: Sequence[ir.Value], old: ir.Value, affine: Sequence[ir.Value]
) -> ir.Value:
    """``old`` + unit · state, times the tokens' scales and with their zeros if there are any."""
    unit, _, weight = numbers
    if affine:
        scale, zero = affine
        old, unit = fma(b, zero, weight, old), b.fmul(unit, scale)
    return fma(b, state, unit, old)


@emitted
def rotated_scores(  # type: ignore[no-untyped-def]
    tx, states, query, scores, rows, row_bytes, dims, rotated, partners, signs, turns, cos, sin
):
    """scores[row] += query · states over ``dims``, 1 to 3 rows; ``states`` and scores are rows of 64 tokens.

    Of the first ``rotated`` dims, i is states[i] · cos[turns[i]] + signs[i] · states[partners[i]] · sin[turns[i]];
    ``partners`` and ``turns`` are offsets in bytes.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        states, query, scores, rows, row_bytes, dims, rotated, partners, signs, turns, cos, sin = args

        def some(b: ir.IRBuilder, rows: int) -> None:
            def row_of(base: ir.Value) -> list[ir.Value]:
                return [load(b, base, I64(64 * part), FLOATS) for part in range(_VECTORS)]

            def add(state: Sequence[ir.Value], index: ir.Value, sums: Sequence[ir.Value]) -> list[ir.Value]:
                new = []
                for row in range(rows):
                    at = b.add(query, b.mul(row_bytes, I64(row)))
                    factor = splat(b, load(b, at, b.mul(index, I64(4)), ir.FloatType()))
                    totals = sums[row * _VECTORS : (row + 1) * _VECTORS]
                    new += [fma(b, x, factor, total) for x, total in zip(state, totals, strict=True)]
                return new

            def turned(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                place = b.mul(index, I64(8))
                partner, turn = load(b, partners, place, I64), load(b, turns, place, I64)
                sign = splat(b, load(b, signs, b.mul(index, I64(4)), ir.FloatType()))
                parts = zip(
                    row_of(b.add(states, b.mul(index, I64(STEP)))),
                    row_of(b.add(states, partner)),
                    row_of(b.add(cos, turn)),
                    row_of(b.add(sin, turn)),
                    strict=True,
                )
                return add([fma(b, x, c, b.fmul(b.fmul(y, sign), s)) for x, y, c, s in parts], index, sums)

            def plain(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                index = b.add(index, rotated)
                return add(row_of(b.add(states, b.mul(index, I64(STEP)))), index, sums)

            sums = [ir.Constant(FLOATS, [0.0] * LANES)] * (rows * _VECTORS)
            sums = loop(b, rotated, sums, turned)
            sums = loop(b, b.sub(dims, rotated), sums, plain)
            for index, total in enumerate(sums):
                row, part = divmod(index, _VECTORS)
                store(
                    b,
                    b.fadd(total, load(b, scores, I64(STEP * row + 64 * part), FLOATS)),
                    scores,
                    STEP * row + 64 * part,
                )

        choose(b, [rows], [(1, 2, 3)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 12), emit


@emitted
def gather_columns(tx, table, row_bytes, positions, dims, out):  # type: ignore[no-untyped-def]
    """Rows of a ``table`` (·, ``dims``) fp32 at 64 ``positions`` (int64) → ``dims`` rows of 64 at ``out``.

    Rows of ``out`` come in sixteens: what lies behind the last of them is written, too.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        table, row_bytes, positions, dims, out = args
        get, at = masked(b, "load", WORDS), WORDS.as_pointer()

        def tokens(b: ir.IRBuilder, part: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            first = b.mul(part, I64(LANES))
            rows = [load(b, positions, b.mul(b.add(first, I64(token)), I64(8)), I64) for token in range(LANES)]
            rows = [b.add(table, b.mul(row, row_bytes)) for row in rows]

            def columns(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                here = lanes_left(b, dims, b.mul(index, I64(LANES)), LANES)
                place = b.mul(index, I64(64))
                words = [b.call(get, [b.inttoptr(b.add(row, place), at), I32(1), here, zero()]) for row in rows]
                target = b.add(b.add(out, b.mul(index, I64(LANES * STEP))), b.mul(part, I64(64)))
                for dim, turned in enumerate(_transposed(b, words)):
                    store(b, turned, target, STEP * dim)
                return []

            return loop(b, b.ashr(b.add(dims, I64(LANES - 1)), I64(4)), [], columns)

        loop(b, I64(_VECTORS), [], tokens)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), emit


def _transposed(b: ir.IRBuilder, rows: Sequence[ir.Value]) -> list[ir.Value]:
    """16 vectors of 16 words → their columns."""
    rows = list(rows)
    for width in (8, 4, 2, 1):
        low = [lane if not lane & width else LANES + lane - width for lane in range(LANES)]
        high = [lane + width if not lane & width else LANES + lane for lane in range(LANES)]
        for index in range(LANES):
            if not index & width:
                x, y = rows[index], rows[index + width]
                rows[index], rows[index + width] = shuffle(b, x, y, low), shuffle(b, x, y, high)
    return rows
