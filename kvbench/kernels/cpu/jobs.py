"""The kernels as C functions of a job's address: a thread claims units of work until none are left."""

from __future__ import annotations

from numba import cfunc, types

from kvbench.kernels.cpu import coded_kernel, exact_kernel, merge_kernel
from kvbench.kernels.cpu.llvm import vectors
from kvbench.kernels.cpu.memory import longs, record_at
from kvbench.kernels.cpu.records import CODED_JOB, EXACT_JOB, MERGE_JOB

_JOB = types.void(types.int64)
_MERGE_BYTES = MERGE_JOB.itemsize


@cfunc(_JOB, cache=True, error_model="numpy")
def coded_job(address: int) -> None:
    """:func:`kvbench.kernels.cpu.coded_kernel.attend_coded` on the units of a job."""
    job = record_at(address, CODED_JOB)
    first = vectors.claim(address, job.chunk)  # ``next_unit`` is a job's first field
    while first < job.units:
        coded_kernel.attend_coded(first, min(first + job.chunk, job.units), job)
        first = vectors.claim(address, job.chunk)


@cfunc(_JOB, cache=True, error_model="numpy")
def exact_job(address: int) -> None:
    """:func:`kvbench.kernels.cpu.exact_kernel.attend_exact` on the units of a job."""
    job = record_at(address, EXACT_JOB)
    first = vectors.claim(address, job.chunk)
    while first < job.units:
        exact_kernel.attend_exact(first, min(first + job.chunk, job.units), job)
        first = vectors.claim(address, job.chunk)


@cfunc(_JOB, cache=True, error_model="numpy")
def merge_job(address: int) -> None:
    """:func:`kvbench.kernels.cpu.merge_kernel.merge_parts` by one thread."""
    job = record_at(address, MERGE_JOB)
    merge_kernel.merge_parts(job, longs(address + _MERGE_BYTES, 2 * job.parts))


JOBS = (coded_job, exact_job, merge_job)
"""All that is compiled for others to call."""
