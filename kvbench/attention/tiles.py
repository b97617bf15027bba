"""What the CPU kernels do with a tile of tokens: unpack codes, exponentiate, round to two bytes. Compiled by numba.

Everything works on addresses: numba's array slices count references, which costs more than the arithmetic of a tile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types

from kvbench.attention import byte_ops, float_ops, vectors
from kvbench.attention.vectors import as_float

TILE = float_ops.TILE
"""Tokens handled at once: 16 quads, whose codes fit the first-level cache."""

JIT: dict[str, Any] = {
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "nogil": True,
    "error_model": "numpy",
    "cache": True,
}
"""Finite arithmetic only in name: flags that assume no infinities would break masks."""

BYTE_PERMUTE = vectors.has_byte_permute()

LOWEST = np.float32(-1e30)
"""The score of a masked token: finite, so that differences of scores stay defined."""


@vectors.emitted
def address_of(tx, address):  # type: ignore[no-untyped-def]
    """``address`` as a pointer."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        return b.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), emit


@njit(inline="always")
def words(address: int, count: int) -> Any:
    """``count`` 32-bit words at ``address``."""
    return carray(address_of(address), (count,), np.uint32)


@njit(inline="always")
def octets(address: int, count: int) -> Any:
    """``count`` bytes at ``address``."""
    return carray(address_of(address), (count,), np.uint8)


@njit(inline="always")
def halves(address: int, count: int) -> Any:
    """``count`` fp16 numbers at ``address``, as their bits."""
    return carray(address_of(address), (count,), np.uint16)


@njit(inline="always")
def floats(address: int, count: int) -> Any:
    """``count`` fp32 numbers at ``address``."""
    return carray(address_of(address), (count,), np.float32)


@njit(inline="always")
def exponential(x: Any) -> Any:
    """e^x for x ≤ 0 to about 2e-7, branchless: 2^n times a polynomial on [0, 1]."""
    y = max(x, np.float32(-87.0)) * np.float32(1.4426950408889634)
    n = np.int32(np.int32(y) - np.int32(1))
    f = np.float32(y - np.float32(n))
    p = np.float32(1.8775767e-3)
    p = p * f + np.float32(8.9893397e-3)
    p = p * f + np.float32(5.5826318e-2)
    p = p * f + np.float32(2.4015361e-1)
    p = p * f + np.float32(6.9315308e-1)
    p = p * f + np.float32(9.9999994e-1)
    return p * as_float(np.int32((n + np.int32(127)) << np.int32(23)))


@njit(**JIT)
def unpack_tile(
    codes: int, group_bytes: int, groups: int, runs: Any, levels: Any, looked_up: bool, out: int, padded: int
) -> None:
    """Packed codes of ``groups`` · 8 tokens → bytes in quads of ``padded`` components at address ``out``.

    ``runs`` (count, 5) int64: width, first component, components, first byte in the group, and where the low bytes of
    the levels go (-1: they have none). ``levels`` (9, 2, 256) uint8 by width: high and low bytes, if ``looked_up``.
    """
    quad = 4 * padded
    for run in range(runs.shape[0]):
        width, count, fine = runs[run, 0], runs[run, 2], runs[run, 4]
        to = out + 4 * runs[run, 1]
        unpack_run(codes + runs[run, 3], width, count, to, groups, group_bytes, quad)
        if looked_up:
            table = levels.ctypes.data + width * 512
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
    """One section (see :mod:`kvbench.quantizers.packing`): words first, then components with bytes of their own."""
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


@njit(**JIT)
def copy_words(source: int, target: int, count: int) -> None:
    """Copy ``count`` words."""
    x, y = words(source, count), words(target, count)
    for i in range(count):
        y[i] = x[i]


@njit(**JIT)
def fetch_ahead(address: int, size: int) -> None:
    """Ask for ``size`` bytes that will be needed soon: the hardware does not look ahead over tiles this short."""
    for line in range(0, size, 64):
        vectors.prefetch(address + line)
