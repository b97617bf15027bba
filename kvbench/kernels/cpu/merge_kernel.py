"""One softmax over parts of a context, from the parts alone: ``out = Σ_i exp(lse_i - lse) · out_i``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.memory import JIT, floats, record_at
from kvbench.kernels.cpu.records import MERGE_JOB, MERGE_PART

_JOB_BYTES, _PART_BYTES = MERGE_JOB.itemsize, MERGE_PART.itemsize


@njit(**JIT)
def merge_parts(address: int) -> None:
    """A :class:`~kvbench.kernels.cpu.records.MergeJob` and what follows it."""
    job = record_at(address, MERGE_JOB)
    parts, width = address + _JOB_BYTES, job.width
    for head in range(job.heads):
        top, mass = np.float32(-np.inf), np.float32(0)
        for index in range(job.parts):
            top = max(top, log_sum(record_at(parts + index * _PART_BYTES, MERGE_PART), head))
        for index in range(job.parts):
            mass += np.exp(log_sum(record_at(parts + index * _PART_BYTES, MERGE_PART), head) - top)
        floats(job.lse + 4 * head, 1)[0] = top + np.log(mass)
        whole = floats(job.output + 4 * head * width, width)
        for index in range(job.parts):
            part = record_at(parts + index * _PART_BYTES, MERGE_PART)
            share = np.exp(log_sum(part, head) - top) / mass
            output = floats(part.output + 4 * row_of(part, head) * width, width)
            for i in range(width):
                whole[i] = share * output[i] + (whole[i] if index else np.float32(0))


@njit(**JIT)
def row_of(part: Any, head: int) -> int:
    """Which of the part's rows belongs to a query head."""
    return head // part.rows * part.stride * part.rows + head % part.rows


@njit(**JIT)
def log_sum(part: Any, head: int) -> Any:
    """The log-sum-exp of a query head in a part."""
    return floats(part.lse + 4 * row_of(part, head), 1)[0]
