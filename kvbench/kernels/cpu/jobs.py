"""The kernels as C functions of a job (:mod:`kvbench.kernels.cpu.launch`): threads claim units until none are left."""

from __future__ import annotations

import numpy as np
from numba import cfunc, types

from kvbench.kernels.cpu import coded_kernel, exact_kernel
from kvbench.kernels.cpu import merge_kernel as join_kernel
from kvbench.kernels.cpu.launch import ARGUMENTS, CHUNK, NEXT, UNITS
from kvbench.kernels.cpu.llvm import vectors
from kvbench.kernels.cpu.memory import longs
from kvbench.kernels.cpu.records import FIELDS

_TASK = types.void(types.int64)


@cfunc(_TASK, cache=True, error_model="numpy")
def coded_task(address: int) -> None:
    """:func:`kvbench.kernels.cpu.coded_kernel.attend_coded` on the units of a job."""
    job = longs(address, ARGUMENTS + 11)
    keys = longs(address + 8 * (ARGUMENTS + 11), FIELDS)
    values = longs(address + 8 * (ARGUMENTS + 11 + FIELDS), FIELDS)
    scaling = vectors.as_float(np.int32(job[8]))
    first = vectors.claim(address + 8 * NEXT, job[CHUNK])
    while first < job[UNITS]:
        last = min(first + job[CHUNK], job[UNITS])
        coded_kernel.attend_coded(
            first, last, job[3], job[4], job[5], job[6], job[7], scaling, keys, values, job[9], job[10], job[11],
            job[12], job[13],
        )  # fmt: skip
        first = vectors.claim(address + 8 * NEXT, job[CHUNK])


@cfunc(_TASK, cache=True, error_model="numpy")
def join_task(address: int) -> None:
    """:func:`kvbench.kernels.cpu.merge_kernel.join` on a job of its own, by one thread."""
    job = longs(address, 7)
    parts = longs(address + 8 * 7, 2 * job[4])
    join_kernel.join(job[0], job[1], job[2], job[3], parts, job[5], job[6])


@cfunc(_TASK, cache=True, error_model="numpy")
def exact_task(address: int) -> None:
    """:func:`kvbench.kernels.cpu.exact_kernel.attend_exact` on the units of a job."""
    job = longs(address, ARGUMENTS + 13)
    first = vectors.claim(address + 8 * NEXT, job[CHUNK])
    while first < job[UNITS]:
        last = min(first + job[CHUNK], job[UNITS])
        exact_kernel.attend_exact(
            first, last, job[3], job[4], job[5], job[6], job[7], job[8], job[9], job[10], job[11], job[12], job[13],
            job[14], job[15],
        )  # fmt: skip
        first = vectors.claim(address + 8 * NEXT, job[CHUNK])
