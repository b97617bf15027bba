"""Packed codes of a tile to bytes in quads: vectors of columns by a plan, what the plan leaves out run by run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import byte_ops, vectors
from kvbench.kernels.cpu.memory import JIT, copy_words, longs, octets

# What an int64 vector `how` says: addresses and counts of a layout's plan, and of its runs beside the plan.
VECTORS, VECTOR_COUNT, WINDOWS, ORDERS, STARTS, TABLE, RUNS, RUN_COUNT, LEVELS, LOOKED_UP = range(10)
FIELDS = 10

BYTE_PERMUTE = vectors.has_byte_permute()


@njit(**JIT)
def unpack_tile(codes: int, group_bytes: int, groups: int, how: Any, out: int, padded: int) -> None:
    """Packed codes of ``groups`` · 8 tokens → bytes in quads of ``padded`` components at address ``out``."""
    quad = 4 * padded
    if BYTE_PERMUTE:
        for index in range(how[VECTOR_COUNT]):
            vector = longs(how[VECTORS] + 32 * index, 4)
            windows, orders = how[WINDOWS] + 16 * vector[1], how[ORDERS] + 256 * vector[1]
            to, starts = out + 4 * vector[0], how[STARTS] + 64 * index
            byte_ops.unpack_columns(
                codes, group_bytes, groups, to, quad, vector[2], windows, orders, starts, how[TABLE], vector[3]
            )
    for index in range(how[RUN_COUNT]):
        run = longs(how[RUNS] + 40 * index, 5)
        width, first, count, fine = run[0], run[1], run[2], run[4]
        to = out + 4 * first
        unpack_run(codes + run[3], width, count, to, groups, group_bytes, quad)
        if how[LOOKED_UP]:
            table = how[LEVELS] + width * 512
            if fine >= 0:
                look_up(to, out + 4 * fine, 4 * count, table + 256, width, 2 * groups, quad)
            look_up(to, to, 4 * count, table, width, 2 * groups, quad)


@njit(**JIT)
def look_up(source: int, target: int, count: int, table: int, width: int, quads: int, step: int) -> None:
    """target[i] = table[source[i]] for ``count`` bytes of each of ``quads``, ``step`` bytes apart."""
    if not BYTE_PERMUTE:
        entries = octets(table, 256)
        for quad in range(quads):
            x, y = octets(source + quad * step, count), octets(target + quad * step, count)
            for i in range(count):
                y[i] = entries[x[i]]
    elif width <= 6:
        byte_ops.look_up_64(source, target, count, table, quads, step)
    else:
        byte_ops.look_up_256(source, target, count, table, quads, step)


@njit(**JIT)
def unpack_run(source: int, width: int, count: int, out: int, groups: int, group_bytes: int, quad: int) -> None:
    """One run of ``count`` components: fields of 8, 4, 2, 1 bits, each in a section of its own, joined to codes."""
    first = True
    for field in (8, 4, 2, 1):
        if width & field:
            if field == 8:
                copy_bytes(source, count, out, groups, group_bytes, quad)
            else:
                shift = width & (field - 1)
                unpack_field(source, field, count, shift, out, first, groups, group_bytes, quad)
            source += count * field
            first = False


@njit(**JIT)
def unpack_field(
    source: int,
    field: int,
    count: int,
    shift: int,
    out: int,
    first: bool,
    groups: int,
    group_bytes: int,
    quad: int,
) -> None:
    """One section (see :mod:`kvbench.codecs.packing`): words first, then components with bytes of their own."""
    shared = 4 // field
    each = count // shared
    keep = 0 if first else -1
    for part in range(shared):
        to = out + 4 * part * each
        byte_ops.spread_words(source, to, each, 2 * field * part, field, shift, keep, groups, group_bytes, quad)
    whole = each * shared
    for group in range(groups):
        for column in range(whole, count):
            tail = octets(source + group * group_bytes + column * field, field)
            for token in range(8):
                bit = token * field
                code = (tail[bit >> 3] >> (bit & 7)) & ((1 << field) - 1)
                base = out + (2 * group + token // 4) * quad
                place_byte(base, 4 * column + token % 4, code << shift, first)


@njit(**JIT)
def copy_bytes(source: int, count: int, out: int, groups: int, group_bytes: int, quad: int) -> None:
    """Codes of 8 bits: whole quads, as they are."""
    for group in range(groups):
        for half in range(2):
            copy_words(source + group * group_bytes + 4 * half * count, out + (2 * group + half) * quad, count)


@njit(**JIT)
def place_byte(base: int, offset: int, code: Any, first: bool) -> None:
    """base[offset] (=, or |= unless ``first``) ``code``."""
    target = octets(base + offset, 1)
    target[0] = np.uint8(code) if first else np.uint8(target[0] | np.uint8(code))
