"""The kernels as C functions of a job (:mod:`kvbench.attention.threads`): a thread claims units until none are left."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types

from kvbench.attention import coded_kernel, exact_kernel, vectors
from kvbench.attention.threads import ARGUMENTS, CHUNK, NEXT, UNITS
from kvbench.attention.tiles import JIT, address_of

_TASK = types.void(types.int64)
_CODED, _EXACT = ARGUMENTS + 20, ARGUMENTS + 12


@njit(inline="always")
def longs(address: int, count: int) -> Any:
    """``count`` 64-bit numbers at ``address``."""
    return carray(address_of(address), (count,), np.int64)


@njit(**JIT)
def runs_at(address: int, count: int) -> Any:
    """(count, 5) int64."""
    return carray(address_of(address), (count, 5), np.int64)


@njit(**JIT)
def levels_at(address: int) -> Any:
    """(9, 2, 256) uint8."""
    return carray(address_of(address), (9, 2, 256), np.uint8)


@njit(**JIT)
def affine_at(address: int) -> Any:
    """(3,) fp32."""
    return carray(address_of(address), (3,), np.float32)


@cfunc(_TASK, cache=True, error_model="numpy")
def coded_task(address: int) -> None:
    """:func:`kvbench.attention.coded_kernel.attend_coded` on the units of a job."""
    job = longs(address, _CODED)
    splits, tokens, heads, rows, query = job[3], job[4], job[5], job[6], job[7]
    keys, values = longs(job[8], coded_kernel.FIELDS), longs(job[13], coded_kernel.FIELDS)
    key_runs, value_runs = runs_at(job[9], job[10]), runs_at(job[14], job[15])
    key_levels, value_levels = levels_at(job[11]), levels_at(job[16])
    key_affine, value_affine = affine_at(job[12]), affine_at(job[17])
    first = vectors.claim(address + 8 * NEXT, job[CHUNK])
    while first < job[UNITS]:
        coded_kernel.attend_coded(
            first,
            min(first + job[CHUNK], job[UNITS]),
            splits,
            tokens,
            heads,
            rows,
            query,
            keys,
            key_runs,
            key_levels,
            key_affine,
            values,
            value_runs,
            value_levels,
            value_affine,
            job[18],
            job[19],
            job[20],
            job[21],
            job[22],
        )
        first = vectors.claim(address + 8 * NEXT, job[CHUNK])


@cfunc(_TASK, cache=True, error_model="numpy")
def exact_task(address: int) -> None:
    """:func:`kvbench.attention.exact_kernel.attend_exact` on the units of a job."""
    job = longs(address, _EXACT)
    keys, values = longs(job[8], exact_kernel.FIELDS), longs(job[9], exact_kernel.FIELDS)
    first = vectors.claim(address + 8 * NEXT, job[CHUNK])
    while first < job[UNITS]:
        last = min(first + job[CHUNK], job[UNITS])
        exact_kernel.attend_exact(
            first, last, job[3], job[4], job[5], job[6], job[7], keys, values, job[10], job[11], job[12], job[13],
            job[14],
        )  # fmt: skip
        first = vectors.claim(address + 8 * NEXT, job[CHUNK])
