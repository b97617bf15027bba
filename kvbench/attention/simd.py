"""Vector operations that numba does not offer, as LLVM code: dot products of bytes, and their sums across lanes.

Codes are stored in *quads*: four tokens of one component share 32 bits, component after component. One 512-bit vector
holds 16 components of a quad. ``dot_bytes`` multiplies 64 unsigned codes by 64 signed bytes and adds groups of four,
which AVX512-VNNI does in one instruction (``vpdpbusd``); elsewhere plain vector arithmetic does the same, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""32-bit lanes of a vector: components of one quad that are handled at once."""

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_WORDS = ir.VectorType(I32, LANES)
_BYTES = ir.VectorType(I8, 4 * LANES)
_TRANSPOSED = [16 * lane + 4 * column + row for lane in range(4) for row in range(4) for column in range(4)]
"""Within 128 bits: 4 components of 4 tokens each → 4 tokens of 4 components each."""


def emitted(function: Callable[..., Any]) -> Any:
    """An intrinsic: a function that numba calls while compiling, to emit LLVM code in its place."""
    return intrinsic(function)


def has_vnni() -> bool:
    """Whether this processor multiplies and adds bytes in one instruction, 64 at a time."""
    features = llvm.get_host_cpu_features()
    return bool(features.get("avx512vnni")) and bool(features.get("avx512vl"))


def has_byte_permute() -> bool:
    """Whether this processor looks 64 bytes up in a table of 64 or 128 in one instruction."""
    return bool(llvm.get_host_cpu_features().get("avx512vbmi"))


def _load(b: ir.IRBuilder, base: ir.Value, offset: ir.Value, kind: ir.Type = _WORDS) -> ir.Value:
    value = b.load(b.inttoptr(b.add(base, offset), kind.as_pointer()))
    value.align = 4
    return value


def _store(b: ir.IRBuilder, value: ir.Value, base: ir.Value, offset: int) -> None:
    done = b.store(value, b.inttoptr(b.add(base, I64(offset)), value.type.as_pointer()))
    done.align = 4


def _shuffle(b: ir.IRBuilder, x: ir.Value, y: ir.Value, order: Sequence[int]) -> ir.Value:
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(order)), list(order)))


def _dot_bytes(b: ir.IRBuilder, total: ir.Value, codes: ir.Value, signed: ir.Value) -> ir.Value:
    """``total`` (16 words) plus the sums of four products each of ``codes`` (u8) and ``signed`` (s8), both as words."""
    if has_vnni():
        kind = ir.FunctionType(_WORDS, [_WORDS] * 3)
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
        even = _shuffle(b, x, y, [*range(4), *range(8, 12), *range(16, 20), *range(24, 28)])
        odd = _shuffle(b, x, y, [*range(4, 8), *range(12, 16), *range(20, 24), *range(28, 32)])
        return b.add(even, odd)

    return fold(fold(quads[0], quads[1]), fold(quads[2], quads[3]))


def _loop(
    b: ir.IRBuilder, count: ir.Value, carried: list[ir.Value], body: Callable[..., list[ir.Value]]
) -> list[ir.Value]:
    """Emit ``for i in range(count)`` with values carried in registers; ``body(b, i, carried)`` returns the new ones."""
    before, loop, after = b.block, b.append_basic_block("loop"), b.append_basic_block("after")
    b.cbranch(b.icmp_signed(">", count, I64(0)), loop, after)
    b.position_at_end(loop)
    index = b.phi(I64)
    phis = [b.phi(value.type) for value in carried]
    results = body(b, index, phis)
    following = b.add(index, I64(1))
    end = b.block
    b.cbranch(b.icmp_signed("<", following, count), loop, after)
    for phi, start, new in zip([index, *phis], [I64(0), *carried], [following, *results], strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(new, end)
    b.position_at_end(after)
    final = []
    for start, new in zip(carried, results, strict=True):
        phi = b.phi(start.type)
        phi.add_incoming(start, before)
        phi.add_incoming(new, end)
        final.append(phi)
    return final


def _zero() -> ir.Constant:
    return ir.Constant(_WORDS, [0] * LANES)


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
                    raw = b.bitcast(_load(b, own, offset), _BYTES)
                    turned = b.bitcast(_shuffle(b, raw, raw, _TRANSPOSED), _WORDS)
                    sides = [_load(b, b.add(query, b.mul(row_bytes, I64(row))), offset) for row in range(rows)]
                    return [_dot_bytes(b, total, turned, side) for side, total in zip(sides, sums, strict=True)]

                sums.append(_loop(b, vectors, [_zero()] * rows, step))
            for row in range(rows):
                target = b.add(out, b.mul(out_bytes, I64(row)))
                _store(b, _across(b, [own[row] for own in sums]), target, 0)
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
                vectors = [_load(b, base, I64(64 * column)) for column in range(columns)]
                new = []
                for row in range(rows):
                    word = _load(b, b.add(weights, b.mul(row_bytes, I64(row))), b.mul(index, I64(4)), I32)
                    lanes = b.insert_element(ir.Constant(_WORDS, ir.Undefined), word, I32(0))
                    lanes = _shuffle(b, lanes, lanes, [0] * LANES)
                    new += [
                        _dot_bytes(b, sums[row * columns + column], vectors[column], lanes) for column in range(columns)
                    ]
                return new

            sums = _loop(b, quads, [_zero()] * (rows * columns), step)
            for row in range(rows):
                target = b.add(out, b.mul(out_bytes, I64(row)))
                for column in range(columns):
                    _store(b, sums[row * columns + column], target, 64 * column)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), emit

    return mix


def _table(b: ir.IRBuilder, address: ir.Value, part: int) -> ir.Value:
    return _load(b, address, I64(64 * part), _BYTES)


def _permute(b: ir.IRBuilder, codes: ir.Value, address: ir.Value, size: int) -> ir.Value:
    """``codes`` looked up in the table of ``size`` bytes (64 or 256) at ``address``."""
    if size == 64:
        one = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(_BYTES, [_BYTES] * 2), "llvm.x86.avx512.permvar.qi.512"
        )
        return b.call(one, [_table(b, address, 0), codes])
    two = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(_BYTES, [_BYTES] * 3), "llvm.x86.avx512.vpermi2var.qi.512"
    )
    lower = b.call(two, [_table(b, address, 0), codes, _table(b, address, 1)])
    upper = b.call(two, [_table(b, address, 2), codes, _table(b, address, 3)])
    return b.select(b.icmp_signed("<", codes, ir.Constant(_BYTES, [0] * 64)), upper, lower)


def _lanes_left(b: ir.IRBuilder, count: ir.Value, done: ir.Value, lanes: int) -> ir.Value:
    """Which of ``lanes`` lie before ``count`` when ``done`` are behind."""
    kind = ir.VectorType(I32, lanes)
    left = b.insert_element(ir.Constant(kind, ir.Undefined), b.trunc(b.sub(count, done), I32), I32(0))
    left = b.shuffle_vector(left, left, ir.Constant(kind, [0] * lanes))
    return b.icmp_signed("<", ir.Constant(kind, list(range(lanes))), left)


def _masked(b: ir.IRBuilder, name: str, kind: ir.VectorType) -> ir.Function:
    """``llvm.masked.load`` or ``llvm.masked.store`` of ``kind``."""
    bits = ir.VectorType(ir.IntType(1), kind.count)
    place = kind.as_pointer()
    signature = (
        ir.FunctionType(kind, [place, I32, bits, kind])
        if name == "load"
        else ir.FunctionType(ir.VoidType(), [kind, place, I32, bits])
    )
    return cgutils.get_or_insert_function(
        b.module, signature, f"llvm.masked.{name}.v{kind.count}i{kind.element.width}.p0"
    )


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
            word = b.insert_element(ir.Constant(_WORDS, ir.Undefined), b.trunc(value, I32), I32(0))
            return _shuffle(b, word, word, [0] * LANES)

        bits = b.sub(b.shl(I64(1), field), I64(1))
        mask, by, kept = every(b.mul(bits, I64(0x01010101))), every(shift), every(keep)
        places = every(place), every(b.add(place, field))
        load, store = _masked(b, "load", _WORDS), _masked(b, "store", _WORDS)

        def column(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            offset = b.mul(index, I64(64))
            here = _lanes_left(b, count, b.mul(index, I64(LANES)), LANES)

            def group(b: ir.IRBuilder, number: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                at = b.add(b.add(source, offset), b.mul(number, group_bytes))
                packed = b.call(load, [b.inttoptr(at, _WORDS.as_pointer()), I32(1), here, _zero()])
                target = b.add(b.add(low, offset), b.mul(number, b.shl(quad_bytes, I64(1))))
                for half, start in enumerate(places):
                    to = b.inttoptr(b.add(target, b.mul(quad_bytes, I64(half))), _WORDS.as_pointer())
                    old = b.and_(b.call(load, [to, I32(1), here, _zero()]), kept)
                    new = b.shl(b.and_(b.lshr(packed, start), mask), by)
                    b.call(store, [b.or_(old, new), to, I32(1), here])
                return []

            return _loop(b, groups, [], group)

        _loop(b, b.ashr(b.add(count, I64(LANES - 1)), I64(4)), [], column)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), emit


def _prefetch(b: ir.IRBuilder, address: ir.Value) -> None:
    """Ask for the cache line at ``address``, which need not be valid."""
    place = I8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [place, I32, I32, I32])
    fetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(fetch, [b.inttoptr(address, place), I32(0), I32(3), I32(1)])


@emitted
def prefetch(tx, address):  # type: ignore[no-untyped-def]
    """Ask for the cache line at ``address``, which need not be valid."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        _prefetch(b, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), emit


def _look_up(size: int) -> Any:
    @emitted
    def look_up(tx, source, target, count, table, quads, quad_bytes):  # type: ignore[no-untyped-def]
        """target[i] = table[source[i]] for ``count`` bytes of each of ``quads``; reads, but never writes, beyond."""

        def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
            source, target, count, table, quads, quad_bytes = args
            store = _masked(b, "store", _BYTES)

            def column(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                offset = b.mul(index, I64(64))
                here = _lanes_left(b, count, offset, 64)

                def quad(b: ir.IRBuilder, number: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                    step = b.add(offset, b.mul(number, quad_bytes))
                    found = _permute(b, _load(b, source, step, _BYTES), table, size)
                    b.call(store, [found, b.inttoptr(b.add(target, step), _BYTES.as_pointer()), I32(1), here])
                    return []

                return _loop(b, quads, [], quad)

            _loop(b, b.ashr(b.add(count, I64(63)), I64(6)), [], column)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), emit

    return look_up


@emitted
def half_to_float(tx, bits):  # type: ignore[no-untyped-def]
    """The fp16 number with these 16 ``bits``, as fp32."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        return b.fpext(b.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), emit


@emitted
def as_float(tx, bits):  # type: ignore[no-untyped-def]
    """The fp32 number with these 32 ``bits``."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        return b.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), emit


look_up_64, look_up_256 = _look_up(64), _look_up(256)

# Rows come in pairs: the high and the low byte of a query or a weight. Six rows of four vectors fill the registers.
scores_2, scores_4, scores_6 = _scores(2), _scores(4), _scores(6)
mix_2, mix_4, mix_6 = _mix(2, 4), _mix(4, 4), _mix(6, 4)
mix_2_narrow, mix_4_narrow, mix_6_narrow = _mix(2, 1), _mix(4, 1), _mix(6, 1)


_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_NONE = ir.Constant(_FLOATS, [0.0] * LANES)


def _fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, total: ir.Value) -> ir.Value:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.fma.v16f32"), [x, y, total])


def _masked_floats(b: ir.IRBuilder, address: ir.Value, here: ir.Value) -> ir.Value:
    load = _masked(b, "load", _WORDS)
    at = b.inttoptr(address, _WORDS.as_pointer())
    return b.bitcast(b.call(load, [at, I32(1), here, _zero()]), _FLOATS)


def _sum_lanes(b: ir.IRBuilder, tokens: Sequence[ir.Value]) -> ir.Value:
    """Four vectors → their four sums, <4 x float>."""

    def fold(x: ir.Value, y: ir.Value, low: list[int], high: list[int]) -> ir.Value:
        return b.fadd(_shuffle(b, x, y, low), _shuffle(b, x, y, high))

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
                    here = _lanes_left(b, rank, b.mul(index, I64(LANES)), LANES)
                    key = _masked_floats(b, b.add(own, offset), here)
                    sides = [
                        _masked_floats(b, b.add(b.add(query, offset), b.mul(row_bytes, I64(row))), here)
                        for row in range(rows)
                    ]
                    return [_fma(b, side, key, total) for side, total in zip(sides, sums, strict=True)]

                sums.append(_loop(b, vectors, [_NONE] * rows, step))
            for row in range(rows):
                _store(b, _sum_lanes(b, [own[row] for own in sums]), b.add(out, b.mul(out_bytes, I64(row))), 0)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), emit

    return scores


def _exact_mix(rows: int, columns: int) -> Any:
    @emitted
    def mix(tx, values, weights, out, tokens, token_bytes, row_bytes, out_bytes, count):  # type: ignore[no-untyped-def]
        """out[row][component] (fp32) += weights · values over ``tokens``, for the ``count`` next components."""

        def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
            values, weights, out, tokens, token_bytes, row_bytes, out_bytes, count = args
            here = [_lanes_left(b, count, I64(LANES * column), LANES) for column in range(columns)]
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
                    word = _load(b, at, b.mul(index, I64(4)), ir.FloatType())
                    lanes = b.insert_element(ir.Constant(_FLOATS, ir.Undefined), word, I32(0))
                    lanes = _shuffle(b, lanes, lanes, [0] * LANES)
                    new += [_fma(b, lanes, vectors[c], sums[row * columns + c]) for c in range(columns)]
                return new

            store = _masked(b, "store", _WORDS)
            for index, total in enumerate(_loop(b, tokens, start, step)):
                place = b.inttoptr(places[index], _WORDS.as_pointer())
                b.call(store, [b.bitcast(total, _WORDS), place, I32(1), here[index % columns]])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), emit

    return mix


exact_scores_1, exact_scores_2, exact_scores_3 = _exact_scores(1), _exact_scores(2), _exact_scores(3)
exact_mix_1, exact_mix_2, exact_mix_3 = _exact_mix(1, 4), _exact_mix(2, 4), _exact_mix(3, 4)


TILE = 64
"""Tokens of the rows below: four vectors."""


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [value] * LANES)


def _splat(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    lanes = b.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, I32(0))
    return _shuffle(b, lanes, lanes, [0] * LANES)


def _row(b: ir.IRBuilder, address: ir.Value) -> list[ir.Value]:
    return [_load(b, address, I64(64 * part), _FLOATS) for part in range(TILE // LANES)]


def _fold(b: ir.IRBuilder, x: ir.Value, together: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """All lanes of ``x`` together."""
    for width in (8, 4, 2, 1):
        x = together(x, _shuffle(b, x, x, [lane ^ width for lane in range(LANES)]))
    return b.extract_element(x, I32(0))


def _exp(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e^x for x ≤ 0 to about 2e-7: 2^n times a polynomial on [0, 1]."""
    floor = _constant(-87.0)
    x = b.select(b.fcmp_ordered(">", x, floor), x, floor)
    y = b.fmul(x, _constant(1.4426950408889634))
    n = b.sub(b.fptosi(y, _WORDS), ir.Constant(_WORDS, [1] * LANES))
    f = b.fsub(y, b.sitofp(n, _FLOATS))
    p = _constant(1.8775767e-3)
    for c in (8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 9.9999994e-1):
        p = _fma(b, p, f, _constant(c))
    exponent = b.shl(b.add(n, ir.Constant(_WORDS, [127] * LANES)), ir.Constant(_WORDS, [23] * LANES))
    return b.fmul(p, b.bitcast(exponent, _FLOATS))


@emitted
def largest(tx, row, start):  # type: ignore[no-untyped-def]
    """The largest of ``start`` and a row of 64."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        def larger(x: ir.Value, y: ir.Value) -> ir.Value:
            return b.select(b.fcmp_ordered(">", x, y), x, y)

        return _fold(b, reduce(larger, [_splat(b, args[1]), *_row(b, args[0])]), larger)

    return types.float32(types.int64, types.float32), emit


@emitted
def exponentials(tx, row, top):  # type: ignore[no-untyped-def]
    """A row of 64 scores becomes e^(score - top); their sum."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        row, top = args[0], _splat(b, args[1])
        found = [_exp(b, b.fsub(score, top)) for score in _row(b, row)]
        for part, p in enumerate(found):
            _store(b, p, row, 64 * part)
        return _fold(b, reduce(b.fadd, found), b.fadd)

    return types.float32(types.int64, types.float32), emit


@emitted
def round_weights(tx, row, scale, zero, high, low, step, out):  # type: ignore[no-untyped-def]
    """Weights p · scale of a row of 64, times ``step``, as two signed bytes each; out (3,) fp32 receives

    Σ p · zero, and the sums of the high and of the low bytes. The low byte counts 1 / 254 of the high one.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        row, scale, zero, high, low, step, out = args
        step = _splat(b, step)
        rest, whole, fine = _constant(0.0), _zero(), _zero()
        bytes_ = ir.VectorType(I8, LANES)
        parts = zip(_row(b, row), _row(b, scale), _row(b, zero), strict=True)
        for part, (p, a, z) in enumerate(parts):
            rest = _fma(b, p, z, rest)
            y = b.fmul(b.fmul(p, a), step)
            h = b.fptosi(b.fadd(y, _constant(0.5)), _WORDS)
            off = b.fsub(y, b.sitofp(h, _FLOATS))
            shifted = b.fptosi(_fma(b, off, _constant(254.0), _constant(128.5)), _WORDS)
            f = b.sub(shifted, ir.Constant(_WORDS, [128] * LANES))
            whole, fine = b.add(whole, h), b.add(fine, f)
            _store(b, b.trunc(h, bytes_), high, LANES * part)
            _store(b, b.trunc(f, bytes_), low, LANES * part)
        for place, total in enumerate((rest, b.sitofp(whole, _FLOATS), b.sitofp(fine, _FLOATS))):
            _store(b, _fold(b, total, b.fadd), out, 4 * place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5, types.float32, types.int64), emit
