"""Products of matrices of bytes in the matrix registers of AMX, as LLVM code.

A register holds 16 rows of 64 bytes. One instruction (``tdpbssd`` and its kin) multiplies a *left* one, 16 rows of 64
numbers, by a *right* one, 64 rows of 16 numbers laid out as 16 rows of four bytes a column, and adds to 16 rows of 16
words: as much as 256 instructions of AVX512-VNNI. A tile of 64 tokens is such a right side both ways: in quads for
sums over tokens, in steps (:mod:`.rebuild_ops`) for sums over columns.

A thread that uses the registers configures them first and releases them at last.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache

from llvmlite import ir
from numba import types
from numba.core import cgutils

from kvbench.kernels.cpu.llvm.float_ops import TILE
from kvbench.kernels.cpu.llvm.vectors import BYTES, I8, I64, choose, compiled_for, constants, emitted, load, loop, store

ROWS, ROW_BYTES = 16, 64
STEPS = ROWS
"""Of four columns each: what one instruction sums over."""

DIMS = 2 * ROWS
"""Key dimensions that are rebuilt at once."""

SUMS = 4
"""Registers for sums, the first ones; left sides come next, then right ones."""
_REGISTERS = 8

_PARTS = TILE // ROWS
_STEP = 4 * TILE


@lru_cache(maxsize=1)
def has_matrices() -> bool:
    """Whether kernels may multiply matrices: the processor can, and Linux has granted this process the registers."""
    return compiled_for("amx-int8", "amx-tile") and _granted()


def _granted() -> bool:
    request, tile_data, system_call = 0x1023, 18, 158  # ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA, arch_prctl
    try:
        return bool(ctypes.CDLL(None).syscall(system_call, request, tile_data) == 0)
    except (OSError, AttributeError, TypeError):  # no such call on this system
        return False


def _call(b: ir.IRBuilder, name: str, *operands: ir.Value) -> None:
    kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
    b.call(cgutils.get_or_insert_function(b.module, kind, f"llvm.x86.{name}"), operands)


def _load(b: ir.IRBuilder, register: int, address: ir.Value, row_bytes: ir.Value) -> None:
    _call(b, "tileloadd64", I8(register), b.inttoptr(address, I8.as_pointer()), row_bytes)


def _store(b: ir.IRBuilder, register: int, address: ir.Value, row_bytes: ir.Value) -> None:
    _call(b, "tilestored64", I8(register), b.inttoptr(address, I8.as_pointer()), row_bytes)


@emitted
def configure(tx):  # type: ignore[no-untyped-def]
    """All eight registers have 16 rows of 64 bytes from now on."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        if has_matrices():
            palette = bytearray(64)
            palette[0] = 1
            for register in range(8):
                palette[16 + 2 * register], palette[48 + register] = ROW_BYTES, ROWS
            shape = cgutils.global_constant(b, "kvbench_matrix_shapes", ir.Constant(ir.ArrayType(I8, 64), palette))
            _call(b, "ldtilecfg", b.bitcast(shape, I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(), emit


@emitted
def release(tx):  # type: ignore[no-untyped-def]
    """The registers are not in use any more."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        if has_matrices():
            _call(b, "tilerelease")
        return context.get_dummy_value()

    return types.void(), emit


Place = Callable[[ir.IRBuilder, ir.Value, int], ir.Value]
"""Emits the address of one of several sides at a step of a loop."""


def _sum_products(
    b: ir.IRBuilder, count: ir.Value, sizes: tuple[int, int], left: Place, row_bytes: ir.Value, right: Place
) -> None:
    """Sums over ``count`` steps of all products of ``sizes`` (lefts, rights): one or two by up to four, four in all.

    Left sides are signed and have ``row_bytes``, right sides are in steps of a tile. Left i and right j make register
    rights · i + j. Two by two load the least: every load serves two products.
    """
    lefts, rights = sizes

    def step(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
        for i in range(lefts):
            _load(b, SUMS + i, left(b, index, i), row_bytes)
        for j in range(rights):
            register = SUMS + lefts + j % (_REGISTERS - SUMS - lefts)
            _load(b, register, right(b, index, j), I64(_STEP))
            for i in range(lefts):
                _call(b, "tdpbsud", I8(rights * i + j), I8(SUMS + i), I8(register))
        return []

    for register in range(lefts * rights):
        _call(b, "tilezero", I8(register))
    loop(b, count, [], step)


@emitted
def scores(tx, steps, query, out, groups, row_bytes, lefts, parts):  # type: ignore[no-untyped-def]
    """out[row][token] (``lefts`` · 16 rows of words, 256 bytes apart) = Σ steps · query over ``groups`` · 64 columns.

    ``query``: 1 or 2 times 16 rows of signed bytes, ``row_bytes`` apart. ``parts`` · 16 tokens, from ``steps`` on.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        steps, query, out, groups, row_bytes, lefts, parts = args
        all_rows = b.mul(row_bytes, I64(ROWS))

        def some(b: ir.IRBuilder, lefts: int, parts: int) -> None:
            def left(b: ir.IRBuilder, index: ir.Value, i: int) -> ir.Value:
                return b.add(b.add(query, b.mul(all_rows, I64(i))), b.mul(index, I64(ROW_BYTES)))

            at_once = SUMS // lefts
            for first in range(0, parts, at_once):

                def right(b: ir.IRBuilder, index: ir.Value, j: int, first: int = first) -> ir.Value:
                    return b.add(steps, b.add(b.mul(index, I64(STEPS * _STEP)), I64(ROW_BYTES * (first + j))))

                rights = min(at_once, parts - first)
                _sum_products(b, groups, (lefts, rights), left, row_bytes, right)
                for register in range(lefts * rights):
                    i, j = divmod(register, rights)
                    _store(b, register, b.add(out, I64(ROWS * _STEP * i + ROW_BYTES * (first + j))), I64(_STEP))

        if has_matrices():
            choose(b, [lefts, parts], [(1, 2), range(1, _PARTS + 1)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), emit


@emitted
def mix(tx, quads, weights, out, lefts, columns, quad_bytes):  # type: ignore[no-untyped-def]
    """out[row][component] (``lefts`` · 16 rows of words, 256 bytes apart) = Σ weights · quads over 64 tokens.

    ``weights``: 1 or 2 times 16 rows of 64 unsigned bytes. ``quads``: signed bytes of ``columns`` (1 to 4) times 16
    components.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        quads, weights, out, lefts, columns, quad_bytes = args

        def some(b: ir.IRBuilder, lefts: int, columns: int) -> None:
            for i in range(lefts):
                _load(b, SUMS + i, b.add(weights, I64(ROWS * ROW_BYTES * i)), I64(ROW_BYTES))
            for column in range(columns):
                right = SUMS + lefts + column % (_REGISTERS - SUMS - lefts)
                _load(b, right, b.add(quads, I64(ROW_BYTES * column)), quad_bytes)
                for i in range(lefts):
                    register = (lefts * column + i) % SUMS
                    _call(b, "tilezero", I8(register))
                    _call(b, "tdpbusd", I8(register), I8(SUMS + i), I8(right))
                    _store(b, register, b.add(out, I64(ROWS * _STEP * i + ROW_BYTES * column)), I64(_STEP))

        if has_matrices():
            choose(b, [lefts, columns], [(1, 2), (1, 2, 3, 4)], some)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), emit


@emitted
def rebuild(tx, steps, offsets, coarse, fine, decoder, out):  # type: ignore[no-untyped-def]
    """out[dim][token] (:data:`DIMS` rows of 64 words) = Σ bytes · decoder over ``coarse`` slices, then over others.

    A slice is 16 steps, at ``offsets`` (int64) from ``steps``; ``decoder`` has DIMS rows of 64 signed bytes for each.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        steps, offsets, coarse, fine, decoder, out = args

        def walk(count: ir.Value, offsets: ir.Value, decoder: ir.Value, out: ir.Value) -> None:
            def left(b: ir.IRBuilder, index: ir.Value, i: int) -> ir.Value:
                return b.add(decoder, b.add(b.mul(index, I64(DIMS * ROW_BYTES)), I64(ROWS * ROW_BYTES * i)))

            for first in range(0, _PARTS, 2):

                def right(b: ir.IRBuilder, index: ir.Value, j: int, first: int = first) -> ir.Value:
                    base = b.add(steps, load(b, offsets, b.mul(index, I64(8)), I64))
                    return b.add(base, I64(ROW_BYTES * (first + j)))

                _sum_products(b, count, (2, 2), left, I64(ROW_BYTES), right)
                for register in range(SUMS):
                    i, j = divmod(register, 2)
                    _store(b, register, b.add(out, I64(ROWS * _STEP * i + ROW_BYTES * (first + j))), I64(_STEP))

        if has_matrices():
            walk(coarse, offsets, decoder, out)
            after = b.add(decoder, b.mul(coarse, I64(DIMS * ROW_BYTES)))
            walk(fine, b.add(offsets, b.mul(coarse, I64(8))), after, b.add(out, I64(DIMS * _STEP)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), emit


@emitted
def flip(tx, tile, vectors):  # type: ignore[no-untyped-def]
    """The highest bit of every byte of ``vectors`` · 64 at ``tile``: 0…255 becomes -128…127."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        tile, vectors = args

        def vector(b: ir.IRBuilder, index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            place = b.add(tile, b.mul(index, I64(64)))
            store(b, b.xor(load(b, place, I64(0), BYTES), constants(BYTES, 0x80)), place, 0)
            return []

        loop(b, vectors, [], vector)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 2), emit
