"""What the CPU kernels share: views of memory, the exponential, the size of a tile. Compiled by numba.

Everything works on addresses: numba's array slices count references, which costs more than the arithmetic of a tile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types

from kvbench.kernels.cpu.llvm import float_ops, vectors
from kvbench.kernels.cpu.llvm.inner import Inner
from kvbench.kernels.cpu.llvm.vectors import as_float

TILE = float_ops.TILE
"""Tokens handled at once: 16 quads, whose codes fit the first-level cache."""

ROWS_AT_ONCE = 3
"""Rows of queries whose dot products share a load of the codes."""

JIT: dict[str, Any] = {
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "nogil": True,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": Inner,
}
"""For what other kernels call: it is inlined there, and not compiled by itself.

Finite arithmetic only in name: flags that assume no infinities would break masks."""

VIEW: dict[str, Any] = {"inline": "always", "no_cpython_wrapper": True}
"""For what only says where something lies."""

IN_ORDER: dict[str, Any] = JIT | {"fastmath": False}
"""For sums whose terms are added in the order in which they stand."""

LOWEST = np.float32(-1e30)
"""The score of a masked token: finite, so that differences of scores stay defined."""


@vectors.emitted
def address_of(tx, address):  # type: ignore[no-untyped-def]
    """``address`` as a pointer."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        return b.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), emit


@njit(**VIEW)
def record_at(address: int, dtype: Any) -> Any:
    """The record of ``dtype`` (:mod:`kvbench.kernels.cpu.records`) at ``address``."""
    return carray(address_of(address), (1,), dtype)[0]


@njit(**VIEW)
def longs(address: int, count: int) -> Any:
    """``count`` 64-bit numbers at ``address``."""
    return carray(address_of(address), (count,), np.int64)


@njit(**VIEW)
def ints(address: int, count: int) -> Any:
    """``count`` signed 32-bit numbers at ``address``."""
    return carray(address_of(address), (count,), np.int32)


@njit(**VIEW)
def words(address: int, count: int) -> Any:
    """``count`` 32-bit words at ``address``."""
    return carray(address_of(address), (count,), np.uint32)


@njit(**VIEW)
def octets(address: int, count: int) -> Any:
    """``count`` bytes at ``address``."""
    return carray(address_of(address), (count,), np.uint8)


@njit(**VIEW)
def halves(address: int, count: int) -> Any:
    """``count`` fp16 numbers at ``address``, as their bits."""
    return carray(address_of(address), (count,), np.uint16)


@njit(**VIEW)
def floats(address: int, count: int) -> Any:
    """``count`` fp32 numbers at ``address``."""
    return carray(address_of(address), (count,), np.float32)


@njit(**VIEW)
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
def fetch_ahead(address: int, size: int) -> None:
    """Prefetch ``size`` bytes that will be needed soon: the hardware does not look ahead over tiles this short."""
    for line in range(0, size, 64):
        vectors.prefetch(address + line)


@njit(**JIT)
def copy_words(source: int, target: int, count: int) -> None:
    """Copy ``count`` words."""
    x, y = words(source, count), words(target, count)
    for i in range(count):
        y[i] = x[i]


@njit(**JIT)
def fill(address: int, count: int, value: Any) -> None:
    """``count`` fp32 numbers become ``value``."""
    x = floats(address, count)
    for i in range(count):
        x[i] = value
