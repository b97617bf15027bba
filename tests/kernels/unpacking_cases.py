"""Packed codes unpacked by the CPU kernel, byte for byte beside what was packed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit

from kvbench.codecs.kernel_view import Coded
from kvbench.codecs.packing import pack
from kvbench.kernels.cpu import unpack_kernel
from kvbench.kernels.cpu.column_layout import column_layout
from kvbench.kernels.cpu.memory import record_at
from kvbench.kernels.cpu.records import UNPACK_PLAN

SPARE = 512
"""Bytes behind a tile that vectors may write."""


@njit
def unpack(codes, group_bytes, groups, plan, out, columns):  # type: ignore[no-untyped-def]
    unpack_kernel.unpack_tile(codes, group_bytes, groups, record_at(plan, UNPACK_PLAN), out, columns)


def check_unpacking(widths: Sequence[int], groups: int, looked_up: bool) -> None:
    """``groups`` · 8 tokens of random codes, or of levels that need a second byte."""
    torch.manual_seed(len(widths))
    tokens = 8 * groups
    codes = torch.stack([torch.randint(2**width, (tokens,)) for width in widths], -1).to(torch.uint8)
    levels = {width: torch.randn(2**width) for width in set(widths)} if looked_up else None
    coded = Coded(pack(codes, widths)[None, None].contiguous(), tuple(widths), len(widths), levels)
    layout = column_layout(coded)
    out = np.zeros(tokens * layout.columns + SPARE, np.uint8)
    plan = layout.unpack_plan.ctypes.data
    unpack(coded.codes.data_ptr(), layout.group_bytes, groups, plan, out.ctypes.data, layout.columns)
    quads = out[: tokens * layout.columns].reshape(2 * groups, layout.columns, 4)
    by_token = quads.swapaxes(1, 2).reshape(tokens, layout.columns)
    seen: set[int] = set()
    for column, component in enumerate(layout.component_of_column):
        expected = codes[:, component].numpy()
        if looked_up:
            expected = layout.levels[widths[component], int(component in seen)][expected]
        assert (by_token[:, column] == expected).all(), (column, widths)
        seen.add(component)
