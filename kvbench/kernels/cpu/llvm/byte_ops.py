"""Dot products of codes with queries and with softmax weights, as LLVM code.

Codes are stored in *quads*: four tokens of one component share 32 bits, component after component. One 512-bit vector
holds 16 components of a quad. Queries and weights are two rows of factors (:mod:`.product_ops`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir
from numba import types

from kvbench.kernels.cpu.llvm.product_ops import as_pairs, dot_bytes, dot_pairs, in_pairs, query_sums, weight_sums
from kvbench.kernels.cpu.llvm.vectors import (
    BYTES,
    I32,
    I64,
    LANES,
    SHORTS,
    WORDS,
    choose,
    constants,
    emit_prefetch,
    emitted,
    every,
    load,
    loop,
    shuffle,
    store,
    zero,
)

Read = Callable[..., ir.Value]
"""Emits what loads codes, or factors, of the builder at a step of a loop."""

_STEPS_OF_PAIRS = 64
"""Steps whose products of 16 bits, four a step, have a sum of 32 bits whatever the codes."""

_TRANSPOSED = [16 * lane + 4 * column + row for lane in range(4) for row in range(4) for column in range(4)]
"""Within 128 bits: 4 components of 4 tokens each → 4 tokens of 4 components each."""


def _across(b: ir.IRBuilder, quads: Sequence[ir.Value]) -> ir.Value:
    """Four vectors, each with the sums of 4 tokens in 4 parts of 128 bits → one vector of 16 tokens' whole sums."""

    def fold(x: ir.Value, y: ir.Value) -> ir.Value:
        even = shuffle(b, x, y, [*range(4), *range(8, 12), *range(16, 20), *range(24, 28)])
        odd = shuffle(b, x, y, [*range(4, 8), *range(12, 16), *range(20, 24), *range(28, 32)])
        return b.add(even, odd)

    return fold(fold(quads[0], quads[1]), fold(quads[2], quads[3]))


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
    ``query``: per row and byte ``vectors`` vectors, every 4 bytes four times, joined (``join_query``). What lies
    ``ahead`` of the codes is prefetched: tiles are too short for the hardware to foresee them.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        codes, query, out, rows, vectors, group_bytes, row_bytes, out_bytes, nibbles, ahead = args
        second = b.ashr(group_bytes, I64(1))

        def factors(b: ir.IRBuilder, index: ir.Value, row: int) -> list[ir.Value]:
            places = (b.add(query, b.mul(row_bytes, I64(2 * row + byte))) for byte in range(2))
            return [load(b, place, b.mul(index, I64(64))) for place in places]

        def some(b: ir.IRBuilder, rows: int, nibbles: int) -> None:
            sums = []
            for group in range(2):
                base = b.add(codes, b.mul(group_bytes, I64(group)))

                def read(b: ir.IRBuilder, index: ir.Value, half: int, base: ir.Value = base) -> ir.Value:
                    offset = b.mul(index, I64(64))
                    place = b.add(base, offset)
                    first = b.add(place, ahead)
                    for line in [first] if nibbles else [b.add(first, offset), b.add(first, b.add(offset, I64(64)))]:
                        if not half:
                            emit_prefetch(b, line)  # in order
                    words = _transposed(b, load(b, place, second if half and not nibbles else I64(0)))
                    return _nibble(b, words, half) if nibbles else words

                sums += (_scores_in_pairs if in_pairs() else _scores_by_bytes)(b, read, factors, rows, vectors)
            for row in range(2 * rows):
                target = b.add(out, b.mul(out_bytes, I64(row)))
                store(b, _across(b, [dots[row] for dots in sums]), target, 0)

        choose(b, [rows, nibbles], [(1, 2, 3), (0, 1)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), emit


def _scores_by_bytes(
    b: ir.IRBuilder, read: Read, factors: Read, rows: int, vectors: ir.Value
) -> list[Sequence[ir.Value]]:
    """Sums over ``vectors`` of either quad of 8 tokens, two for each row."""

    def step(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        quads = [read(b, index, half) for half in range(2)]
        sides = [factor for row in range(rows) for factor in factors(b, index, row)]
        pairs = [(quad, side) for quad in quads for side in sides]
        return [dot_bytes(b, total, *pair) for pair, total in zip(pairs, sums, strict=True)]

    both = loop(b, vectors, [zero()] * (4 * rows), step)
    return [both[: 2 * rows], both[2 * rows :]]


def _scores_in_pairs(
    b: ir.IRBuilder, read: Read, factors: Read, rows: int, vectors: ir.Value
) -> list[Sequence[ir.Value]]:
    """The same of joined factors; one quad after the other, since there may be 16 registers of half a vector."""

    def walk(half: int) -> list[ir.Value]:
        def block(b: ir.IRBuilder, number: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
            first = b.mul(number, I64(_STEPS_OF_PAIRS))
            left = b.sub(vectors, first)
            count = b.select(b.icmp_signed("<", left, I64(_STEPS_OF_PAIRS)), left, I64(_STEPS_OF_PAIRS))

            def step(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                index = b.add(index, first)
                quad = as_pairs(b, read(b, index, half), b.lshr)
                return [dot_pairs(b, total, quad, factors(b, index, row)) for row, total in enumerate(sums)]

            sums = [part for total in loop(b, count, [zero()] * rows, step) for part in query_sums(b, total)]
            return [b.add(total, part) for total, part in zip(totals, sums, strict=True)]

        blocks = b.ashr(b.add(vectors, I64(_STEPS_OF_PAIRS - 1)), I64(_STEPS_OF_PAIRS.bit_length() - 1))
        return loop(b, blocks, [zero()] * (2 * rows), block)

    return [walk(half) for half in range(2)]


@emitted
def mix(tx, codes, weights, out, rows, columns, groups, group_bytes, row_bytes, out_bytes, nibbles, flip, ahead):  # type: ignore[no-untyped-def]
    """out[row][component] (i32) = Σ (codes ^ flip) · weights over ``groups`` · 8 tokens, for 1 to 3 rows of two bytes

    and 1, 2 or 4 ``columns`` of 16 components. Codes are as in :func:`scores`; weights are unsigned and joined
    (``join_weights``), flipped codes signed. There are at most 32 groups.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        codes, weights, out, rows, columns, groups, group_bytes, row_bytes, out_bytes, nibbles, flip, ahead = args
        second, flipped = b.ashr(group_bytes, I64(1)), every(b, flip)

        def factors(b: ir.IRBuilder, index: ir.Value, half: int, row: int) -> list[ir.Value]:
            places = (b.add(weights, b.mul(row_bytes, I64(2 * row + byte))) for byte in range(2))
            return [every(b, load(b, b.add(place, I64(4 * half)), b.mul(index, I64(8)), I32)) for place in places]

        def some(b: ir.IRBuilder, rows: int, columns: int, nibbles: int) -> None:
            def read(b: ir.IRBuilder, index: ir.Value, half: int, column: int) -> ir.Value:
                base = b.add(codes, b.mul(index, group_bytes))
                place = I64(64 * column) if nibbles or not half else b.add(second, I64(64 * column))
                if not (nibbles and half):
                    emit_prefetch(b, b.add(b.add(base, place), ahead))
                words = load(b, base, place)
                return _nibble(b, words, half) if nibbles else b.xor(words, flipped)

            sums = (_mix_in_pairs if in_pairs() else _mix_by_bytes)(b, read, factors, rows, columns, groups)
            for row in range(2 * rows):
                target = b.add(out, b.mul(out_bytes, I64(row)))
                for column in range(columns):
                    store(b, sums[row * columns + column], target, 64 * column)

        choose(b, [rows, columns, nibbles], [(1, 2, 3), (1, 2, 4), (0, 1)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 12), emit


def _mix_by_bytes(
    b: ir.IRBuilder, read: Read, factors: Read, rows: int, columns: int, groups: ir.Value
) -> list[ir.Value]:
    """Sums over ``groups``, two for each row, of all ``columns``."""

    def step(b: ir.IRBuilder, index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        for half in range(2):
            signed = [read(b, index, half, column) for column in range(columns)]
            lanes = [factor for row in range(rows) for factor in factors(b, index, half, row)]
            pairs = [(factor, codes) for factor in lanes for codes in signed]
            sums = [dot_bytes(b, total, *pair) for pair, total in zip(pairs, sums, strict=True)]
        return sums

    return loop(b, groups, [zero()] * (2 * rows * columns), step)


def _mix_in_pairs(
    b: ir.IRBuilder, read: Read, factors: Read, rows: int, columns: int, groups: ir.Value
) -> list[ir.Value]:
    """The same of joined factors, one column after the other."""
    sums: list[list[ir.Value]] = [[] for _ in range(2 * rows)]
    for column in range(columns):

        def step(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value], column: int = column) -> list[ir.Value]:
            *totals, all_codes = carried
            for half in range(2):
                codes = as_pairs(b, read(b, index, half, column), b.ashr)
                all_codes = b.add(all_codes, b.add(*codes))
                totals = [dot_pairs(b, total, codes, factors(b, index, half, row)) for row, total in enumerate(totals)]
            return [*totals, all_codes]

        *totals, all_codes = loop(b, groups, [*[zero()] * rows, constants(SHORTS, 0)], step)
        for row, total in enumerate(totals):
            for byte, part in enumerate(weight_sums(b, total, all_codes)):
                sums[2 * row + byte].append(part)
    return [part for each in sums for part in each]
