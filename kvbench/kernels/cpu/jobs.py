"""The kernels as a C function of a job's address: a thread claims units of work until none are left."""

from __future__ import annotations

from numba import cfunc, njit, types

from kvbench.kernels.cpu import coded_kernel, exact_kernel, merge_kernel
from kvbench.kernels.cpu.llvm import vectors
from kvbench.kernels.cpu.memory import JIT, longs, record_at
from kvbench.kernels.cpu.records import CODED, CODED_JOB, EXACT_JOB, STEP_JOB

_STEP_BYTES = STEP_JOB.itemsize


@njit(**JIT)
def run_coded(address: int) -> int:
    """:func:`kvbench.kernels.cpu.coded_kernel.attend_coded` on units of a job; how many this thread did."""
    job, done = record_at(address, CODED_JOB), 0
    first = vectors.claim(address, job.chunk)  # ``next_unit`` is a job's first field
    while first < job.units:
        last = min(first + job.chunk, job.units)
        coded_kernel.attend_coded(first, last, job)
        done += last - first
        first = vectors.claim(address, job.chunk)
    return done


@njit(**JIT)
def run_exact(address: int) -> int:
    """:func:`kvbench.kernels.cpu.exact_kernel.attend_exact` on units of a job; how many this thread did."""
    job, done = record_at(address, EXACT_JOB), 0
    first = vectors.claim(address, job.chunk)
    while first < job.units:
        last = min(first + job.chunk, job.units)
        exact_kernel.attend_exact(first, last, job)
        done += last - first
        first = vectors.claim(address, job.chunk)
    return done


@cfunc(types.void(types.int64), cache=True, error_model="numpy")
def step_job(address: int) -> None:
    """A :class:`~kvbench.kernels.cpu.records.StepJob`, by any number of threads: its attentions, then their merge."""
    job, done = record_at(address, STEP_JOB), 0
    jobs = longs(address + _STEP_BYTES, 2 * job.attentions)
    for index in range(job.attentions):
        if jobs[2 * index] == CODED:
            done += run_coded(jobs[2 * index + 1])
        else:
            done += run_exact(jobs[2 * index + 1])
    last = done > 0 or job.units == 0
    if job.merge and last and vectors.claim(address, done) + done == job.units:
        merge_kernel.merge_parts(job.merge)
