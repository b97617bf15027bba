"""The order in which a kernel unpacks codes to bytes, worked out once per quantizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from kvbench.codecs.kernel_view import Coded, Same, Tables, tables
from kvbench.codecs.packing import Run, packed_bytes, runs
from kvbench.kernels.cpu import unpack_kernel
from kvbench.kernels.cpu.llvm.vectors import LANES
from kvbench.kernels.cpu.unpack_plan import Column, Plan, planned, table

GRID = 127
"""Levels are read as bytes: multiples of their largest magnitude / 127."""

FINE = 254
"""What lies between those multiples goes to a second byte, of 1 / 254 of the first."""


@dataclass(frozen=True, eq=False)
class Layout:
    """``columns`` bytes per token after unpacking, a multiple of 16; those beyond ``sources`` mean nothing.

    ``sources`` names the component of each column and ``factors`` what its byte is worth: levels off the byte grid take
    two columns. Columns are unpacked by ``plan``, with levels from ``table``, those that it leaves out by ``runs``
    (count, 5: width, first column, components, first byte, first column of second bytes or -1) and ``levels`` (9, 2,
    256) by width. ``direct`` says that codes need no unpacking, ``nibbles`` that they are all of 4 bits, and
    ``in_order`` that columns are the components as they come. ``affine``: scale and zero of the bytes (2,).
    """

    runs: Any
    plan: Plan
    levels: Any
    table: Any
    sources: Any
    factors: Any
    columns: int
    group_bytes: int
    direct: bool
    nibbles: bool
    looked_up: bool
    in_order: bool
    affine: Any

    def worth(self, component: Tensor | None) -> Any:
        """What one unit of each column's byte is worth (columns,) fp32, given its component's; None: one."""
        return _worth(self, Same(component))

    @cached_property
    def unpacking(self) -> Any:
        """The addresses that the kernel unpacks by; they hold as long as the layout does."""
        plan, how = self.plan, np.zeros(unpack_kernel.FIELDS, np.int64)
        how[[unpack_kernel.VECTOR_COUNT, unpack_kernel.RUN_COUNT]] = len(plan.vectors), len(self.runs)
        how[unpack_kernel.LOOKED_UP] = self.looked_up
        for field, array in (
            (unpack_kernel.VECTORS, plan.vectors),
            (unpack_kernel.WINDOWS, plan.windows),
            (unpack_kernel.ORDERS, plan.orders),
            (unpack_kernel.STARTS, plan.starts),
            (unpack_kernel.TABLE, self.table),
            (unpack_kernel.RUNS, self.runs),
            (unpack_kernel.LEVELS, self.levels),
        ):
            how[field] = array.ctypes.data
        return how


def layout(coded: Coded) -> Layout:
    """The layout of ``coded``; the same object for the same quantizer."""
    return _layout(coded.widths, None if coded.levels is None else tables(coded.levels))


@lru_cache(maxsize=4096)
def _worth(own: Layout, component: Same[Tensor | None]) -> Any:
    if component.own is None:
        return own.factors if own.looked_up else None
    return own.factors * component.own.numpy().astype(np.float32)[own.sources]


@lru_cache(maxsize=1024)
def _layout(widths: tuple[int, ...], held: Tables | None) -> Layout:
    levels = None if held is None else {width: own.own for width, own in held}
    by_width = np.zeros((9, 2, 256), np.uint8)
    columns: list[Column] = []
    factors: list[float] = []
    rows: dict[Run, list[int]] = {}
    fine: list[tuple[Run, float]] = []
    for run in runs(widths):
        unit, is_fine = (1.0, False) if levels is None else _byte_levels(levels[run.width], by_width[run.width])
        rows[run] = [run.width, len(columns), run.components, run.byte, -1]
        columns += [Column(run, index, False) for index in range(run.components)]
        factors += [unit] * run.components
        if is_fine:
            fine.append((run, unit / FINE))
    for run, unit in fine:
        rows[run][4] = len(columns)
        columns += [Column(run, index, True) for index in range(run.components)]
        factors += [unit] * run.components
    sources = [column.run.first + column.number for column in columns]
    plan, slow = planned(columns, levels is not None)
    whole = levels is None and len(widths) % LANES == 0
    return Layout(
        runs=np.array([rows[run] for run in slow], np.int64).reshape(-1, 5),
        plan=plan,
        levels=by_width,
        table=table(by_width),
        sources=np.array(sources, np.int64),
        factors=np.array(factors, np.float32),
        columns=-(-len(sources) // LANES) * LANES,
        group_bytes=packed_bytes(widths),
        direct=whole and set(widths) in ({4}, {8}),
        nibbles=whole and set(widths) == {4},
        looked_up=levels is not None,
        in_order=sources == list(range(len(widths))),
        affine=np.array([1.0, 0.0 if levels is None else -128.0], np.float32),
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
