"""Packed codes of a tile to bytes in quads: vectors of columns by a plan, what the plan leaves out run by run.

``plan`` is an :class:`~kvbench.kernels.cpu.records.UnpackPlan`, ``run`` an
:class:`~kvbench.kernels.cpu.records.UnpackRun`. A *quad* is four tokens' bytes of one column; ``quad_bytes`` lie
between those of one group of four tokens and the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import unpack_ops
from kvbench.kernels.cpu.memory import JIT, copy_words, octets, record_at
from kvbench.kernels.cpu.records import UNPACK_RUN, UNPACK_VECTOR

SHARING = unpack_ops.columns_of_a_table()
_RUN_BYTES, _VECTOR_BYTES = UNPACK_RUN.itemsize, UNPACK_VECTOR.itemsize
_WINDOW_BYTES, _ORDER_BYTES, _START_BYTES = 16, 256, 64
"""Of one slot's window and orders, and of one vector's starts (:class:`kvbench.kernels.cpu.unpack_plan.ColumnPlan`)."""
_PART_BYTES = 64
"""Of one part of a vector's table."""
_LEVEL_BYTES = 512
"""Of one width's levels: 256 first bytes, 256 second bytes."""


@njit(**JIT)
def unpack_tile(codes: int, group_bytes: int, groups: int, plan: Any, out: int, columns: int) -> None:
    """Packed codes of ``groups`` · 8 tokens → bytes in quads of ``columns`` at address ``out``."""
    quad_bytes = 4 * columns
    if SHARING:
        for index in range(plan.vector_count):
            vector = record_at(plan.vectors + _VECTOR_BYTES * index, UNPACK_VECTOR)
            unpack_ops.unpack_columns(
                codes,
                group_bytes,
                groups,
                out + 4 * vector.column,
                quad_bytes,
                vector.slots,
                plan.windows + _WINDOW_BYTES * vector.first_slot,
                plan.orders + _ORDER_BYTES * vector.first_slot,
                plan.starts + _START_BYTES * index,
                plan.tables + _PART_BYTES * vector.first_part,
                vector.parts,
            )
    for index in range(plan.run_count):
        run = record_at(plan.runs + _RUN_BYTES * index, UNPACK_RUN)
        unpack_run(codes + run.byte, run, out, groups, group_bytes, quad_bytes)
        if plan.looked_up:
            levels, to = plan.levels + run.width * _LEVEL_BYTES, out + 4 * run.column
            if run.fine_column >= 0:
                second, levels_of_second = out + 4 * run.fine_column, levels + _LEVEL_BYTES // 2
                look_up(to, second, run.components, levels_of_second, run.width, 2 * groups, quad_bytes)
            look_up(to, to, run.components, levels, run.width, 2 * groups, quad_bytes)


@njit(**JIT)
def look_up(source: int, target: int, columns: int, levels: int, width: int, quads: int, quad_bytes: int) -> None:
    """The levels of codes of ``width`` bits in ``columns`` of each of ``quads``."""
    if SHARING:
        parts = max(1, (1 << width) // (4 * SHARING))
        unpack_ops.look_up(source, target, columns, levels, parts, quads, quad_bytes)
        return
    entries = octets(levels, 256)
    for quad in range(quads):
        x, y = octets(source + quad * quad_bytes, 4 * columns), octets(target + quad * quad_bytes, 4 * columns)
        for i in range(4 * columns):
            y[i] = entries[x[i]]


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
        unpack_ops.spread_words(source, to, each, 2 * field * part, field, shift, keep, groups, group_bytes, quad_bytes)
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
