"""Online softmax over tiles of scores: what the kernels for exact and for coded spans share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import float_ops, vectors
from kvbench.kernels.cpu.llvm.vectors import as_float
from kvbench.kernels.cpu.memory import JIT, LOWEST, TILE, exponential, octets

_F = np.float32
_LOG2_E = _F(np.log2(np.e))

_NEGLIGIBLE = _F(-34)
"""Weights so far below the largest (2^-34) count for nothing in fp32: the values of a tile of them are not read."""


@njit(**JIT)
def begin(top: Any, mass: Any, total: Any, bias: Any) -> None:
    """Nothing seen yet."""
    top[:] = LOWEST
    fill(mass, _F(0))
    fill(total, _F(0))
    fill(bias, _F(0))


@njit(**JIT)
def fill(x: Any, value: Any) -> None:
    """x[…] = value, without the slice that numba would count references for."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[i, j] = value


@njit(**JIT)
def hide(score: Any, rows: int, mask: int, count: int) -> None:
    """Scores of masked tokens, and beyond the ``count`` of a tile, as low as they go."""
    if mask:
        seen = octets(mask, count)
        for row in range(rows):
            for t in range(count):
                if not seen[t]:
                    score[row, t] = LOWEST
    for row in range(rows):
        for t in range(count, TILE):
            score[row, t] = LOWEST


@njit(**JIT)
def soften(score: Any, rows: int, top: Any, mass: Any, total: Any, bias: Any, peak: Any) -> bool:
    """Online softmax: scores become weights e^score relative to the largest so far, to which sums are brought.

    ``peak`` receives a power of two that no weight of a row exceeds, at most twice the largest. False if none counts.
    """
    counts = False
    for row in range(rows):
        own = score.ctypes.data + 4 * TILE * row
        most = float_ops.largest(own, LOWEST)
        if most > top[row]:
            c = exponential(top[row] - most)
            top[row] = most
            rescale(mass, row, c)
            rescale(total, row, c)
            rescale(bias, row, c)
        below = (most - top[row]) * _LOG2_E
        peak[row] = as_float(np.int32(127 + np.int32(max(below, _NEGLIGIBLE))) << np.int32(23))
        counts = counts or below > _NEGLIGIBLE
        float_ops.exponentials(own, top[row], mass.ctypes.data + 4 * vectors.LANES * row)
    return counts


@njit(**JIT)
def rescale(sums: Any, row: int, c: Any) -> None:
    """sums[row] *= c."""
    for i in range(sums.shape[1]):
        sums[row, i] *= c
