"""One softmax over parts of a context, from the parts alone: ``out = Σ_i exp(lse_i - lse) · out_i``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.memory import JIT, floats


@njit(**JIT)
def join(pairs: int, rows: int, rank: int, stride: int, parts: Any, out: int, lse: int) -> None:
    """Merge ``parts``, the address of outputs (pairs · ``stride``, rows, rank) and that of the lse (…, rows) of each.

    Every ``stride``-th unit is the part's own. ``out`` (pairs, rows, rank) and ``lse`` (pairs, rows) receive the whole.
    """
    count = len(parts) // 2
    for pair in range(pairs):
        for row in range(rows):
            place, source = pair * rows + row, pair * stride * rows + row
            top = np.float32(-np.inf)
            for part in range(count):
                top = max(top, floats(parts[2 * part + 1] + 4 * source, 1)[0])
            total = np.float32(0)
            for part in range(count):
                total += np.exp(floats(parts[2 * part + 1] + 4 * source, 1)[0] - top)
            floats(lse + 4 * place, 1)[0] = top + np.log(total)
            target = floats(out + 4 * place * rank, rank)
            for part in range(count):
                share = np.exp(floats(parts[2 * part + 1] + 4 * source, 1)[0] - top) / total
                own = floats(parts[2 * part] + 4 * source * rank, rank)
                for i in range(rank):
                    target[i] = share * own[i] + (target[i] if part else np.float32(0))
