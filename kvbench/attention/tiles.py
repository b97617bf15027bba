"""What the CPU kernels do with a tile of tokens: unpack codes, exponentiate, round to two bytes. Compiled by numba.

Everything works on addresses: numba's array slices count references, which costs more than the arithmetic of a tile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types

from kvbench.attention import simd
from kvbench.attention.simd import as_float

TILE = 64
"""Tokens handled at once: 16 quads, whose codes fit the first-level cache."""

JIT: dict[str, Any] = {
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "nogil": True,
    "error_model": "numpy",
    "cache": True,
}
"""Finite arithmetic only in name: flags that assume no infinities would break masks."""

BYTE_PERMUTE = simd.has_byte_permute()

LOWEST = np.float32(-1e30)
"""The score of a masked token: finite, so that differences of scores stay defined."""


@simd.emitted
def _pointer(tx, address):  # type: ignore[no-untyped-def]
    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        return b.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), emit


@njit(inline="always")
def words(address: int, count: int) -> Any:
    """``count`` 32-bit words at ``address``."""
    return carray(_pointer(address), (count,), np.uint32)


@njit(inline="always")
def octets(address: int, count: int) -> Any:
    """``count`` bytes at ``address``."""
    return carray(_pointer(address), (count,), np.uint8)


@njit(inline="always")
def halves(address: int, count: int) -> Any:
    """``count`` fp16 numbers at ``address``, as their bits."""
    return carray(_pointer(address), (count,), np.uint16)


@njit(inline="always")
def floats(address: int, count: int) -> Any:
    """``count`` fp32 numbers at ``address``."""
    return carray(_pointer(address), (count,), np.float32)


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
def largest(x: Any, row: int, start: Any) -> Any:
    """max(start, x[row, :64]), in eight strands that vectorise."""
    a = b = c = d = e = f = g = h = start
    for t in range(0, TILE, 8):
        a, b, c, d = max(a, x[row, t]), max(b, x[row, t + 1]), max(c, x[row, t + 2]), max(d, x[row, t + 3])
        e, f, g, h = max(e, x[row, t + 4]), max(f, x[row, t + 5]), max(g, x[row, t + 6]), max(h, x[row, t + 7])
    return max(max(max(a, b), max(c, d)), max(max(e, f), max(g, h)))


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
        width, first, count, fine = runs[run, 0], 4 * runs[run, 1], runs[run, 2], runs[run, 4]
        table = levels.ctypes.data + width * 512
        for group in range(groups):
            low = out + 2 * group * quad
            unpack_run(codes + group * group_bytes + runs[run, 3], width, count, low + first, low + quad + first)
            if looked_up:
                for half in range(2):
                    at = low + half * quad
                    if fine >= 0:
                        look_up(at + first, at + 4 * fine, 4 * count, table + 256, width)
                    look_up(at + first, at + first, 4 * count, table, width)


@njit(**JIT)
def look_up(source: int, target: int, count: int, table: int, width: int) -> None:
    """target[i] = table[source[i]]."""
    if not BYTE_PERMUTE:
        x, y, entries = octets(source, count), octets(target, count), octets(table, 256)
        for i in range(count):
            y[i] = entries[x[i]]
    elif width <= 6:
        simd.look_up_64(source, target, count, table)
    else:
        simd.look_up_256(source, target, count, table)


@njit(**JIT)
def unpack_run(source: int, width: int, count: int, low: int, high: int) -> None:
    """One run of ``count`` components: fields of 8, 4, 2, 1 bits, each in a section of its own, joined to codes."""
    first = True
    for field in (8, 4, 2, 1):
        if width & field:
            unpack_field(source, field, count, width & (field - 1), low, high, first)
            source += count * field
            first = False


@njit(**JIT)
def unpack_field(source: int, field: int, count: int, shift: int, low: int, high: int, first: bool) -> None:
    """One section (see :mod:`kvbench.quantizers.packing`): words first, then components with bytes of their own."""
    if field == 8:
        copy_words(source, low, count)
        copy_words(source + 4 * count, high, count)
        return
    shared = 4 // field
    each = count // shared
    keep = 0 if first else -1
    for part in range(shared):
        offset = 4 * part * each
        simd.spread_words(source, low + offset, high + offset, each, 2 * field * part, field, shift, keep)
    whole = each * shared
    if whole < count:
        tail = octets(source + whole * field, (count - whole) * field)
        for column in range(count - whole):
            for token in range(8):
                bit = token * field
                code = (tail[column * field + (bit >> 3)] >> (bit & 7)) & ((1 << field) - 1)
                place_byte(low if token < 4 else high, 4 * (whole + column) + token % 4, code << shift, first)


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
        simd.prefetch(address + line)
