"""The kernels as C functions of a job (:mod:`kvbench.attention.threads`): a thread claims units until none are left."""

from __future__ import annotations

from numba import cfunc, types

from kvbench.attention import coded_kernel, exact_kernel, vectors
from kvbench.attention.threads import ARGUMENTS, CHUNK, NEXT, UNITS
from kvbench.attention.tiles import longs

_TASK = types.void(types.int64)
_FIELDS = ARGUMENTS + 12


@cfunc(_TASK, cache=True, error_model="numpy")
def coded_task(address: int) -> None:
    """:func:`kvbench.attention.coded_kernel.attend_coded` on the units of a job."""
    job = longs(address, _FIELDS)
    keys, values = longs(job[8], coded_kernel.FIELDS), longs(job[9], coded_kernel.FIELDS)
    first = vectors.claim(address + 8 * NEXT, job[CHUNK])
    while first < job[UNITS]:
        last = min(first + job[CHUNK], job[UNITS])
        coded_kernel.attend_coded(
            first, last, job[3], job[4], job[5], job[6], job[7], keys, values, job[10], job[11], job[12], job[13],
            job[14],
        )  # fmt: skip
        first = vectors.claim(address + 8 * NEXT, job[CHUNK])


@cfunc(_TASK, cache=True, error_model="numpy")
def exact_task(address: int) -> None:
    """:func:`kvbench.attention.exact_kernel.attend_exact` on the units of a job."""
    job = longs(address, _FIELDS)
    keys, values = longs(job[8], exact_kernel.FIELDS), longs(job[9], exact_kernel.FIELDS)
    first = vectors.claim(address + 8 * NEXT, job[CHUNK])
    while first < job[UNITS]:
        last = min(first + job[CHUNK], job[UNITS])
        exact_kernel.attend_exact(
            first, last, job[3], job[4], job[5], job[6], job[7], keys, values, job[10], job[11], job[12], job[13],
            job[14],
        )  # fmt: skip
        first = vectors.claim(address + 8 * NEXT, job[CHUNK])
