"""Packed codes to bytes in quads, and bytes looked up in tables, as LLVM code.

Tables come in *parts* of 64 bytes. With AVX512-VBMI a byte is looked up in all 64 of a part (``vpermb``), or in two
parts at once (``vpermi2b``). Elsewhere ``pshufb`` looks up in the 16 bytes of the part that lie in the same 128 bits as
the byte itself, so that four columns have a table of their own; further bits of the index choose between parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir
from numba import types

from kvbench.kernels.cpu.llvm.vectors import (
    BYTES,
    I8,
    I32,
    I64,
    LANES,
    WORDS,
    called,
    choose,
    constants,
    emitted,
    every,
    half,
    has_avx2,
    has_byte_permute,
    has_wide_bytes,
    lanes_left,
    load,
    loop,
    masked,
    shuffle,
    store,
    wide_or_halves,
    zero,
)

MOST_SLOTS = 6
"""Most fields of different words that make up 16 codes."""


def columns_of_a_table() -> int:
    """How many of 16 columns are looked up in the same table, with four entries a column in every part.

    0 where there are no such instructions.
    """
    return LANES if has_byte_permute() else 4 if has_avx2() else 0


def table_parts() -> Sequence[int]:
    """How many parts a table may have: up to 256 entries."""
    sharing = columns_of_a_table()
    return [2**power for power in range(5) if sharing and 2**power <= 64 // sharing]


def _looked_up(b: ir.IRBuilder, index: ir.Value, table: Sequence[ir.Value]) -> ir.Value:
    """64 bytes at ``index`` in the parts of a ``table``."""
    if has_byte_permute() and len(table) == 1:
        return called(b, "llvm.x86.avx512.permvar.qi.512", BYTES, table[0], index)
    if has_byte_permute() and len(table) == 2:
        return called(b, "llvm.x86.avx512.vpermi2var.qi.512", BYTES, table[0], index, table[1])
    if len(table) == 1:
        return wide_or_halves(b, "llvm.x86.avx512.pshuf.b.512", "llvm.x86.avx2.pshuf.b", BYTES, table[0], index)
    middle = len(table) // 2
    bit = 4 * columns_of_a_table() * middle
    is_upper = b.icmp_unsigned("!=", b.and_(index, constants(BYTES, bit)), constants(BYTES, 0))
    if bit == 0x80:  # pshufb writes 0 where the highest bit is set
        index = b.and_(index, constants(BYTES, 0x7F))
    lower, upper = (_looked_up(b, index, parts) for parts in (table[:middle], table[middle:]))
    return b.select(is_upper, upper, lower)


@emitted
def unpack_columns(  # type: ignore[no-untyped-def]
    tx, source, group_bytes, groups, out, quad_bytes, slots, windows, orders, starts, table, parts
):
    """16 columns of ``groups`` · 8 tokens by their slots (:class:`~kvbench.kernels.cpu.unpack_plan.ColumnPlan`),
    as bytes of quads.

    If there are any ``parts`` of a ``table``, they are looked up in it.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        source, group_bytes, groups, out, quad_bytes, slots, windows, orders, starts, table, parts = args
        start = load(b, starts, I64(0))

        def some(b: ir.IRBuilder, parts: int, slots: int) -> None:
            fetches = [_fetch(b, windows, orders, slot) for slot in range(slots)]
            entries = [load(b, table, I64(64 * part), BYTES) for part in range(parts)]

            def group(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                base = b.add(source, b.mul(index, group_bytes))
                quads = [start, start]
                for fetch in fetches:
                    quads = [b.or_(quad, field) for quad, field in zip(quads, fetch(b, base), strict=True)]
                target = b.add(out, b.mul(index, b.shl(quad_bytes, I64(1))))
                for place, quad in zip((target, b.add(target, quad_bytes)), quads, strict=True):
                    codes = b.bitcast(quad, BYTES)
                    store(b, _looked_up(b, codes, entries) if parts else codes, place, 0)
                return []

            loop(b, groups, [], group)

        if columns_of_a_table():
            choose(b, [parts, slots], [(0, *table_parts()), range(1, MOST_SLOTS + 1)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), emit


def _fetch(b: ir.IRBuilder, windows: ir.Value, orders: ir.Value, slot: int) -> Callable[..., list[ir.Value]]:
    """What a slot adds to the first and to the second quad of the group at an address."""
    first, count = (load(b, windows, I64(16 * slot + 8 * part), I64) for part in range(2))
    here = lanes_left(b, count, I64(0), LANES)
    places, *rotations, mask = (load(b, orders, I64(256 * slot + 64 * part)) for part in range(4))
    get = masked(b, "load", WORDS)
    rotated = [_rotation(b, by) for by in rotations]

    def fetch(b: ir.IRBuilder, base: ir.Value) -> list[ir.Value]:
        window = b.call(get, [b.inttoptr(b.add(base, first), WORDS.as_pointer()), I32(1), here, zero()])
        words = _permuted(b, window, places)
        return [b.and_(rotate(b, words), mask) for rotate in rotated]

    return fetch


def _rotation(b: ir.IRBuilder, by: ir.Value) -> Callable[..., ir.Value]:
    """What rotates words left: by less than a byte, or by nearly all bits, which is less than a byte to the right.

    AVX2 has no such instruction. There they are shifted one way: no bit that is kept leaves its byte.
    """
    if has_wide_bytes():
        return lambda b, words: called(b, "llvm.fshl.v16i32", WORDS, words, words, by)
    to_the_right = b.icmp_unsigned(">", by, constants(WORDS, 16))
    left = b.select(to_the_right, zero(), by)
    right = b.select(to_the_right, b.sub(constants(WORDS, 32), by), zero())
    return lambda b, words: b.lshr(b.shl(words, left), right)


def _permuted(b: ir.IRBuilder, window: ir.Value, places: ir.Value) -> ir.Value:
    """The words of a ``window`` at ``places``."""
    if has_wide_bytes():
        return called(b, "llvm.x86.avx512.permvar.si.512", WORDS, window, places)
    first, second = (_permuted_from_half(b, half(b, window, part), places) for part in range(2))
    beyond = b.shl(places, constants(WORDS, 28))  # the sign says whether it is the second
    return b.select(b.icmp_signed("<", beyond, zero()), second, first)


def _permuted_from_half(b: ir.IRBuilder, words: ir.Value, places: ir.Value) -> ir.Value:
    first, second = (called(b, "llvm.x86.avx2.permd", words.type, words, half(b, places, part)) for part in range(2))
    return shuffle(b, first, second, range(LANES))


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
                for number_of_half, first in enumerate(places):
                    target = b.add(b.add(base, offset), b.mul(quad_bytes, I64(number_of_half)))
                    to = b.inttoptr(target, WORDS.as_pointer())
                    old = b.and_(b.call(get, [to, I32(1), here, zero()]), kept)
                    new = b.shl(b.and_(b.lshr(packed, first), mask), by)
                    b.call(put, [b.or_(old, new), to, I32(1), here])
                return []

            return loop(b, b.ashr(b.add(count, I64(LANES - 1)), I64(4)), [], column)

        loop(b, groups, [], group)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), emit


@emitted
def look_up(tx, source, target, count, table, parts, quads, quad_bytes):  # type: ignore[no-untyped-def]
    """target[i] = table[source[i]] for ``count`` words of bytes of each of ``quads``; reads, but never writes, beyond.

    The entries of the ``table`` lie in order, and fill ``parts`` parts.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        source, target, count, table, parts, quads, quad_bytes = args
        put = masked(b, "store", WORDS)

        def some(b: ir.IRBuilder, parts: int) -> None:
            entries = [_same_for_all_columns(b, table, part) for part in range(parts)]

            def column(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                offset = b.mul(index, I64(64))
                here = lanes_left(b, count, b.mul(index, I64(LANES)), LANES)

                def quad(b: ir.IRBuilder, number: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                    step = b.add(offset, b.mul(number, quad_bytes))
                    levels = b.bitcast(_looked_up(b, load(b, source, step, BYTES), entries), WORDS)
                    b.call(put, [levels, b.inttoptr(b.add(target, step), WORDS.as_pointer()), I32(1), here])
                    return []

                return loop(b, quads, [], quad)

            loop(b, b.ashr(b.add(count, I64(LANES - 1)), I64(4)), [], column)

        choose(b, [parts], [table_parts()], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), emit


def _same_for_all_columns(b: ir.IRBuilder, table: ir.Value, part: int) -> ir.Value:
    """One part of a table whose entries lie in order."""
    entries = 4 * columns_of_a_table()
    few = load(b, table, I64(entries * part), ir.VectorType(I8, entries))
    return shuffle(b, few, few, [*range(entries)] * (64 // entries))
