"""Bits for runs of components that share a scale: dynamic programming over where runs end and how wide they are.

The allocation of KVTC (arXiv 2511.01815): components in order of falling variance are cut into runs of 1, 16, 64, 256
or 1,024, every run gets one width, and a run costs its scale and zero on top, so that long runs are cheap and short
ones fit their components. What no run covers gets 0 bits and is dropped. The error of a width is that of min-max
integers, whose step goes with the range of a run, where the paper takes variance / 4^bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

RANGES = {1: 0.0, 16: 3.53, 64: 4.75, 256: 5.76, 1024: 6.63}
"""Expected range of so many normal values, in standard deviations (Tippett 1925)."""
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
SCALES = 32
"""Bits of a run's scale and zero."""

Vector = NDArray[np.float64]


def block_runs(variances: Sequence[float], bits: int) -> list[tuple[int, int]]:
    """Runs (components, width) from the first component on, at most ``bits`` per token, of least expected error.

    ``variances`` fall. At least one run comes back, however few the bits.
    """
    totals = np.concatenate([[0.0], np.cumsum(np.asarray(variances, dtype=np.float64))])
    count, size = len(variances), max(SCALES + 1, bits) + 1
    best = {0: np.where(np.arange(size) == 0, 0.0, np.inf)}  # by place, the least error of each number of bits spent
    came: dict[int, NDArray[np.int32]] = {}
    steps: list[tuple[int, int, int]] = []
    finished = (np.inf, 0, 0)
    for place in _places(count):
        errors = best.pop(place, None)
        if errors is None:
            continue
        spent = int(errors.argmin())
        if place:
            finished = min(finished, (float(errors[spent] + totals[-1] - totals[place]), place, spent))
        for components, width, error in _runs(place, totals):
            cost, stop = components * width + SCALES, place + components
            if cost >= size:
                continue
            if stop not in best:
                best[stop], came[stop] = np.full(size, np.inf), np.full(size, -1, dtype=np.int32)
            reached = errors[: size - cost] + error
            better = reached < best[stop][cost:]
            best[stop][cost:][better] = reached[better]
            came[stop][cost:][better] = len(steps)
            steps.append((place, components, width))
    runs, (_, place, spent) = [], finished
    while place:
        place, components, width = steps[came[place][spent]]
        spent -= components * width + SCALES
        runs.append((components, width))
    return runs[::-1]


def _places(count: int) -> Iterator[int]:
    """Where a run may begin or end: after every one of the first 16 components, then after every 16."""
    yield from range(min(16, count))
    yield from range(16, count, 16)
    yield count


def _runs(place: int, totals: Vector) -> Iterator[tuple[int, int, float]]:
    """(components, width, expected error) of the runs that may begin at ``place``."""
    left = len(totals) - 1 - place
    sizes = [size for size in RANGES if (size == 1) == (0 < place < 16) or place == 0] if left else []
    for size in sizes:
        components = min(size, left)
        energy = float(totals[place + components] - totals[place])
        for width in WIDTHS[: 1 if size == 1 else None]:
            yield components, width, energy * min(1.0, RANGES[size] ** 2 / 12 / (2**width - 1) ** 2)
        if size >= left:
            break
