"""One softmax over parts of a context, from the parts alone: ``out = Σ_i exp(lse_i - lse) · out_i``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.memory import JIT, floats


@njit(**JIT)
def merge_parts(job: Any, addresses: Any) -> None:
    """A :class:`~kvbench.kernels.cpu.records.MergeJob`; ``addresses`` (2 · parts,): every part's outputs
    (pairs · stride, rows, width), of which each ``stride``-th unit counts, and its log-sum-exps (…, rows)."""
    width = job.width
    for pair in range(job.pairs):
        for row in range(job.rows):
            place, source = pair * job.rows + row, pair * job.stride * job.rows + row
            top = np.float32(-np.inf)
            for part in range(job.parts):
                top = max(top, floats(addresses[2 * part + 1] + 4 * source, 1)[0])
            mass = np.float32(0)
            for part in range(job.parts):
                mass += np.exp(floats(addresses[2 * part + 1] + 4 * source, 1)[0] - top)
            floats(job.lse + 4 * place, 1)[0] = top + np.log(mass)
            whole = floats(job.output + 4 * place * width, width)
            for part in range(job.parts):
                share = np.exp(floats(addresses[2 * part + 1] + 4 * source, 1)[0] - top) / mass
                output = floats(addresses[2 * part] + 4 * source * width, width)
                for i in range(width):
                    whole[i] = share * output[i] + (whole[i] if part else np.float32(0))
