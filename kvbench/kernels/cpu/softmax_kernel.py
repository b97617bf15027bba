"""Online softmax over tiles of scores: what the kernels for exact and for coded spans share.

``work`` is a :class:`~kvbench.kernels.cpu.workspace.Workspace`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import float_ops, vectors
from kvbench.kernels.cpu.llvm.vectors import as_float
from kvbench.kernels.cpu.memory import JIT, LOWEST, TILE, exponential, fill, floats, octets

_F = np.float32
_LOG2_E = _F(np.log2(np.e))

_NEGLIGIBLE = _F(-34)
"""Weights so far below the largest (2^-34) count for nothing in fp32: the values of a tile of them are not read."""


@njit(**JIT)
def begin_softmax(work: Any) -> None:
    """Nothing seen yet."""
    fill(work.top, work.rows, LOWEST)
    fill(work.mass, work.rows * vectors.LANES, _F(0))
    fill(work.total, work.rows * work.total_width, _F(0))
    fill(work.bias, work.rows * work.bias_width, _F(0))


@njit(**JIT)
def apply_mask(work: Any, mask: int, count: int) -> None:
    """Scores of masked tokens, and beyond the ``count`` of a tile, as low as they go."""
    for row in range(work.rows):
        scores = floats(work.scores + 4 * TILE * row, TILE)
        if mask:
            attended = octets(mask, count)
            for t in range(count):
                if not attended[t]:
                    scores[t] = LOWEST
        for t in range(count, TILE):
            scores[t] = LOWEST


@njit(**JIT)
def update_softmax(work: Any) -> bool:
    """Online softmax: scores become weights e^score relative to the largest so far, to which sums are brought.

    ``peak`` receives a power of two that no weight of a row exceeds, at most twice the largest. False if none counts.
    """
    counts, top, peak = False, floats(work.top, work.rows), floats(work.peak, work.rows)
    for row in range(work.rows):
        scores, mass = work.scores + 4 * TILE * row, work.mass + 4 * vectors.LANES * row
        most = float_ops.largest(scores, LOWEST)
        if most > top[row]:
            factor = exponential(top[row] - most)
            top[row] = most
            rescale(mass, vectors.LANES, factor)
            rescale(work.total + 4 * work.total_width * row, work.total_width, factor)
            rescale(work.bias + 4 * work.bias_width * row, work.bias_width, factor)
        below = (most - top[row]) * _LOG2_E
        peak[row] = as_float(np.int32(127 + np.int32(max(below, _NEGLIGIBLE))) << np.int32(23))
        counts = counts or below > _NEGLIGIBLE
        float_ops.exponentials(scores, top[row], mass)
    return counts


@njit(**JIT)
def rescale(address: int, count: int, factor: Any) -> None:
    """``count`` fp32 numbers times ``factor``."""
    sums = floats(address, count)
    for i in range(count):
        sums[i] *= factor
