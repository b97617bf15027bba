"""Packed codes of a tile to bytes in quads: vectors of columns by a plan, what the plan leaves out run by run.

``plan`` is an :class:`~kvbench.kernels.cpu.records.UnpackPlan`, ``run`` an
:class:`~kvbench.kernels.cpu.records.UnpackRun`. A *quad* is four tokens' bytes of one column; ``quad_bytes`` lie
between those of one group of four tokens and the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import byte_ops, vectors
from kvbench.kernels.cpu.memory import JIT, copy_words, octets, record_at
from kvbench.kernels.cpu.records import UNPACK_RUN, UNPACK_VECTOR

BYTE_PERMUTE = vectors.has_byte_permute()
_RUN_BYTES, _VECTOR_BYTES = UNPACK_RUN.itemsize, UNPACK_VECTOR.itemsize
_WINDOW_BYTES, _ORDER_BYTES, _START_BYTES = 16, 256, 64
"""Of one slot's window and orders, and of one vector's starts (:class:`kvbench.kernels.cpu.unpack_plan.ColumnPlan`)."""
_TABLE_BYTES = 512
"""Of one width's levels: 256 first bytes, 256 second bytes."""


@njit(**JIT)
def unpack_tile(codes: int, group_bytes: int, groups: int, plan: Any, out: int, columns: int) -> None:
    """Packed codes of ``groups`` · 8 tokens → bytes in quads of ``columns`` at address ``out``."""
    quad_bytes = 4 * columns
    if BYTE_PERMUTE:
        for index in range(plan.vector_count):
            vector = record_at(plan.vectors + _VECTOR_BYTES * index, UNPACK_VECTOR)
            byte_ops.unpack_columns(
                codes,
                group_bytes,
                groups,
                out + 4 * vector.column,
                quad_bytes,
                vector.slots,
                plan.windows + _WINDOW_BYTES * vector.first_slot,
                plan.orders + _ORDER_BYTES * vector.first_slot,
                plan.starts + _START_BYTES * index,
                plan.table,
                vector.table_size,
            )
    for index in range(plan.run_count):
        run = record_at(plan.runs + _RUN_BYTES * index, UNPACK_RUN)
        unpack_run(codes + run.byte, run, out, groups, group_bytes, quad_bytes)
        if plan.looked_up:
            table, to, count = plan.levels + run.width * _TABLE_BYTES, out + 4 * run.column, 4 * run.components
            if run.fine_column >= 0:
                second = out + 4 * run.fine_column
                look_up(to, second, count, table + _TABLE_BYTES // 2, run.width, 2 * groups, quad_bytes)
            look_up(to, to, count, table, run.width, 2 * groups, quad_bytes)


@njit(**JIT)
def look_up(source: int, target: int, count: int, table: int, width: int, quads: int, quad_bytes: int) -> None:
    """target[i] = table[source[i]] for ``count`` bytes of each of ``quads``."""
    if not BYTE_PERMUTE:
        entries = octets(table, 256)
        for quad in range(quads):
            x, y = octets(source + quad * quad_bytes, count), octets(target + quad * quad_bytes, count)
            for i in range(count):
                y[i] = entries[x[i]]
    elif width <= 6:
        byte_ops.look_up_64(source, target, count, table, quads, quad_bytes)
    else:
        byte_ops.look_up_256(source, target, count, table, quads, quad_bytes)


@njit(**JIT)
def unpack_run(source: int, run: Any, out: int, groups: int, group_bytes: int, quad_bytes: int) -> None:
    """One run of components: fields of 8, 4, 2, 1 bits, each in a section of its own, joined to codes."""
    to = out + 4 * run.column
    for field in (8, 4, 2, 1):
        if run.width & field:
            if field == 8:
                copy_bytes(source, run.components, to, groups, group_bytes, quad_bytes)
            else:
                unpack_field(source, field, run, to, groups, group_bytes, quad_bytes)
            source += run.components * field


@njit(**JIT)
def unpack_field(source: int, field: int, run: Any, out: int, groups: int, group_bytes: int, quad_bytes: int) -> None:
    """One section (see :mod:`kvbench.codecs.packing`): words first, then components with bytes of their own."""
    shift, first, count = run.width & (field - 1), run.width < 2 * field, run.components
    shared = 4 // field
    each = count // shared
    keep = 0 if first else -1
    for part in range(shared):
        to = out + 4 * part * each
        byte_ops.spread_words(source, to, each, 2 * field * part, field, shift, keep, groups, group_bytes, quad_bytes)
    whole = each * shared
    for group in range(groups):
        for column in range(whole, count):
            packed = octets(source + group * group_bytes + column * field, field)
            for token in range(8):
                bit = token * field
                code = (packed[bit >> 3] >> (bit & 7)) & ((1 << field) - 1)
                base = out + (2 * group + token // 4) * quad_bytes
                place_byte(base, 4 * column + token % 4, code << shift, first)


@njit(**JIT)
def copy_bytes(source: int, count: int, out: int, groups: int, group_bytes: int, quad_bytes: int) -> None:
    """Codes of 8 bits: whole quads, as they are."""
    for group in range(groups):
        for half in range(2):
            copy_words(source + group * group_bytes + 4 * half * count, out + (2 * group + half) * quad_bytes, count)


@njit(**JIT)
def place_byte(base: int, offset: int, code: Any, first: bool) -> None:
    """base[offset] (=, or |= unless ``first``) ``code``."""
    target = octets(base + offset, 1)
    target[0] = np.uint8(code) if first else np.uint8(target[0] | np.uint8(code))
