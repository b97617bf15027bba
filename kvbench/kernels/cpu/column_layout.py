"""The columns of bytes that a kernel unpacks codes to, worked out once per quantizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count, takewhile
from operator import eq
from typing import Any

import numpy as np
from torch import Tensor

from kvbench.codecs.kernel_view import Coded, LevelTables, Same, level_tables
from kvbench.codecs.packing import Run, packed_bytes, runs
from kvbench.kernels.cpu.llvm.vectors import LANES
from kvbench.kernels.cpu.records import UnpackPlan, UnpackRun, pack
from kvbench.kernels.cpu.unpack_plan import Column, ColumnPlan, plan_columns

GRID = 127
"""Levels are read as bytes: multiples of their largest magnitude / 127."""

FINE = 254
"""What lies between those multiples goes to a second byte, of 1 / 254 of the first."""


@dataclass(frozen=True, eq=False)
class ColumnLayout:
    """``columns`` bytes per token after unpacking, a multiple of 16, of which as many as ``component_of_column`` has
    are used: levels off the byte grid take two columns. ``unit`` is what their bytes count, before deviations.

    Columns are unpacked by ``plan``, those that it leaves out by ``runs``
    (:class:`~kvbench.kernels.cpu.records.UnpackRun`) and ``levels`` (9, 2, 256) by width. ``direct`` says that codes
    need no unpacking, ``nibbles`` that they are all of 4 bits; ``ordered`` counts the columns that are the
    first components as they come. ``affine``: scale and zero of the bytes (2,).
    """

    runs: Any
    plan: ColumnPlan
    levels: Any
    component_of_column: Any
    unit: Any
    columns: int
    group_bytes: int
    direct: bool
    nibbles: bool
    looked_up: bool
    ordered: int
    affine: Any

    def column_scale(self, component: Tensor | None) -> Any:
        """What one unit of each column's byte stands for (columns,) fp32, with factors of components; None: one."""
        return _column_scale(self, Same(component))

    @cached_property
    def unpack_plan(self) -> Any:
        """The record that the kernel unpacks by; its addresses hold as long as the layout does."""
        plan = self.plan
        return pack(
            UnpackPlan(
                vectors=plan.vectors.ctypes.data,
                vector_count=len(plan.vectors),
                windows=plan.windows.ctypes.data,
                orders=plan.orders.ctypes.data,
                starts=plan.starts.ctypes.data,
                tables=plan.tables.ctypes.data,
                runs=self.runs.ctypes.data,
                run_count=len(self.runs),
                levels=self.levels.ctypes.data,
                looked_up=self.looked_up,
            )
        )


def column_layout(coded: Coded) -> ColumnLayout:
    """The layout of ``coded``; the same object for the same quantizer."""
    return _column_layout(coded.widths, None if coded.levels is None else level_tables(coded.levels))


@lru_cache(maxsize=4096)
def _column_scale(layout: ColumnLayout, component: Same[Tensor | None]) -> Any:
    if component.value is None:
        return layout.unit if layout.looked_up else None
    return layout.unit * component.value.numpy().astype(np.float32)[layout.component_of_column]


@lru_cache(maxsize=1024)
def _column_layout(widths: tuple[int, ...], tables: LevelTables | None) -> ColumnLayout:
    levels = None if tables is None else {width: table.value for width, table in tables}
    by_width = np.zeros((9, 2, 256), np.uint8)
    columns: list[Column] = []
    units: list[float] = []
    records: dict[Run, UnpackRun] = {}
    fine: list[tuple[Run, float]] = []
    for run in runs(widths):
        unit, is_fine = (1.0, False) if levels is None else _byte_levels(levels[run.width], by_width[run.width])
        records[run] = UnpackRun(run.width, len(columns), run.components, run.byte, -1)
        columns += [Column(run, index, False) for index in range(run.components)]
        units += [unit] * run.components
        if is_fine:
            fine.append((run, unit / FINE))
    for run, unit in fine:
        records[run] = records[run]._replace(fine_column=len(columns))
        columns += [Column(run, index, True) for index in range(run.components)]
        units += [unit] * run.components
    component_of_column = [column.run.first + column.number for column in columns]
    plan, left_out = plan_columns(columns, None if levels is None else by_width)
    whole = levels is None and len(widths) % LANES == 0
    return ColumnLayout(
        runs=np.array([records[run] for run in left_out], np.int64).reshape(-1, len(UnpackRun._fields)),
        plan=plan,
        levels=by_width,
        component_of_column=np.array(component_of_column, np.int64),
        unit=np.array(units, np.float32),
        columns=-(-len(component_of_column) // LANES) * LANES,
        group_bytes=packed_bytes(widths),
        direct=whole and set(widths) in ({4}, {8}),
        nibbles=whole and set(widths) == {4},
        looked_up=levels is not None,
        ordered=sum(takewhile(bool, map(eq, component_of_column, count()))),
        affine=np.array([1.0, 0.0 if levels is None else -128.0], np.float32),
    )


def _byte_levels(table: Tensor, out: Any) -> tuple[float, bool]:
    """Fill ``out`` (2, 256) with a table's high and low bytes; what a high byte counts, and if low ones are needed."""
    values = table.double().numpy()
    unit = float(np.abs(values).max()) / GRID or 1.0
    high = np.rint(values / unit)
    low = np.rint((values / unit - high) * FINE)
    out[0, : len(values)] = high + 128
    out[1, : len(values)] = low + 128
    return unit, bool(np.abs(low).max() > 0)
