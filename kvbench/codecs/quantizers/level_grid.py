"""The nearest level of a number without a search: by a grid of cells so narrow that one comparison is left in each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kvbench.codecs.quantizers.lloyd import between


@dataclass(frozen=True, eq=False)
class LevelGrid:
    """Cells of equal width over the boundaries between levels, half as wide as the two nearest boundaries are apart.

    A number in cell ``i``, counted from ``start`` by ``per_unit`` cells, has ``below[i]`` boundaries below it, and the
    next of ``boundaries`` below it or not: cells and half a cell around them hold one boundary at most, so a cell that
    rounding takes for its neighbour does no harm. Numbers outside belong to the first and the last cell.
    """

    boundaries: NDArray[np.float32]
    """Ascending, with infinity at the end."""
    start: float
    per_unit: float
    below: NDArray[np.uint8]

    @classmethod
    def of(cls, levels: Tensor) -> LevelGrid:
        """The grid of two or more ascending ``levels`` (count,)."""
        boundaries = between(levels).numpy()
        width = float(np.diff(boundaries).min()) / 2 if len(boundaries) > 1 else 1.0
        start, cells = float(boundaries[0]) - width, int((boundaries[-1] - boundaries[0]) / width) + 3
        edges = start + width * (np.arange(cells) - 0.5)
        below = np.searchsorted(boundaries, edges).astype(np.uint8)
        return cls(np.append(boundaries, np.float32(np.inf)), start, 1 / width, below)
