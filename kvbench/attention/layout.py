"""The order in which a kernel unpacks codes to bytes, worked out once per quantizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvbench.attention.vectors import LANES
from kvbench.quantizers.coded import Coded
from kvbench.quantizers.packing import packed_bytes, runs

GRID = 127
"""Levels are read as bytes: multiples of their largest magnitude / 127."""

FINE = 254
"""What lies between those multiples goes to a second byte, of 1 / 254 of the first."""


@dataclass(frozen=True, eq=False)
class Layout:
    """``columns`` bytes per token after unpacking, a multiple of 16; those beyond ``sources`` mean nothing.

    ``sources`` names the component of each column and ``factors`` what its byte is worth: levels off the byte grid take
    two columns. ``middle`` is the byte that stands for zero, ``direct`` says that stored codes need no unpacking,
    ``nibbles`` that they are all of 4 bits, and
    ``in_order`` that columns are the components as they come. ``affine``: scale, zero and middle of the bytes (3,).
    """

    runs: Any
    levels: Any
    sources: Tensor
    factors: Tensor
    columns: int
    group_bytes: int
    middle: float
    direct: bool
    nibbles: bool
    looked_up: bool
    in_order: bool
    affine: Any


def layout(coded: Coded) -> Layout:
    """The layout of ``coded``; the same object for the same quantizer."""
    levels = None if coded.levels is None else _Levels(coded.levels)
    return _layout(coded.widths, levels)


class _Levels:
    """Tables by identity, so that they can be a cache key."""

    def __init__(self, tables: Mapping[int, Tensor]) -> None:
        self.tables = tables
        self._key = tuple(sorted((width, id(table)) for width, table in tables.items()))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Levels) and self._key == other._key


@lru_cache(maxsize=1024)
def _layout(widths: tuple[int, ...], levels: _Levels | None) -> Layout:
    tables = np.zeros((9, 2, 256), np.uint8)
    rows: list[list[int]] = []
    sources: list[int] = []
    factors: list[float] = []
    fine_columns: list[tuple[int, int, float]] = []
    for width, first, count, byte in runs(widths):
        unit, is_fine = 1.0, False
        if levels is not None:
            unit, is_fine = _byte_levels(levels.tables[width], tables[width])
        rows.append([width, len(sources), count, byte, -1])
        sources += range(first, first + count)
        factors += [unit] * count
        if is_fine:
            fine_columns.append((len(rows) - 1, first, unit / FINE))
    for row, first, unit in fine_columns:  # after all others: unpacking a run may spill into what follows it
        count = rows[row][2]
        rows[row][4] = len(sources)
        sources += range(first, first + count)
        factors += [unit] * count
    columns = -(-len(sources) // LANES) * LANES
    middle = 0.0 if levels is None else 128.0
    return Layout(
        np.array(rows, np.int64),
        tables,
        torch.tensor(sources),
        torch.tensor(factors, dtype=torch.float32),
        columns,
        packed_bytes(widths),
        middle,
        levels is None and set(widths) in ({4}, {8}) and len(widths) % LANES == 0,
        levels is None and set(widths) == {4} and len(widths) % LANES == 0,
        levels is not None,
        sources == list(range(len(widths))),
        np.array([1.0, -middle, middle], np.float32),
    )


def _byte_levels(table: Tensor, out: Any) -> tuple[float, bool]:
    """Fill ``out`` (2, 256) with a table's high and low bytes; what a high byte is worth, and if low ones count."""
    values = table.double().numpy()
    unit = float(np.abs(values).max()) / GRID or 1.0
    high = np.rint(values / unit)
    low = np.rint((values / unit - high) * FINE)
    out[0, : len(values)] = high + 128
    out[1, : len(values)] = low + 128
    return unit, bool(np.abs(low).max() > 0)
