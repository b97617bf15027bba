"""Stored keys and values as Triton kernels read them: where they lie, and by which plan they are unpacked."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from kvbench.codecs.kernel_view import BlockAffine, Coded, LevelTables, level_tables
from kvbench.kernels.triton.unpack_plan import SidePlan, plan, table

_MOST_BLOCKS = 16
"""A kernel is unrolled over the blocks of both sides: with more of them it takes minutes to compile."""

LEAST_TOKENS = 8
"""Fewest tokens of a block with scales or a position of its own: a tile has rows of queries for each of its blocks."""


class Side(NamedTuple):
    """Stored keys or values: tensors and strides, bytes for codes and elements for scales."""

    codes: Tensor
    row: int
    head: int
    group: int
    scale: Tensor | None
    zero: Tensor | None
    scale_row: int
    scale_head: int
    scale_token: int
    block_scale: Tensor | None
    block_zero: Tensor | None
    block_row: int
    block_head: int
    component: Tensor | None
    levels: Tensor | None
    units: Tensor | None
    table: Tensor | None
    rank: int


def side_readable(coded: Coded) -> bool:
    """Whether the Triton kernel can read ``coded``: scales in fp16, dense codes, few blocks of components.

    All widths from 0 to 8 and their mixtures, all ranks and channel groups; a block has up to 128 components of one
    channel group, in uniform widths a power of two of them, and 2 or 4 blocks share the words of fields of 2 or 1 bits.
    There are at most 16. Keys may have scales per component in blocks of at least 8 tokens.
    """
    affine = [part for part in (coded.scale, coded.zero) if part is not None]
    alike = len(affine) < 2 or affine[0].stride() == affine[1].stride()
    dense = coded.codes.stride(-1) == 1 and all(part.stride(-1) == 1 or part.shape[-1] == 1 for part in affine)
    blocks = sum(len(channel.blocks) for channel in plan(coded.widths, coded.channel, False))
    readable = dense and alike and all(part.dtype == torch.float16 for part in affine) and blocks <= _MOST_BLOCKS
    return readable and (coded.blocks is None or _blocks_readable(coded.blocks, coded.widths))


def _blocks_readable(blocks: BlockAffine, widths: tuple[int, ...]) -> bool:
    """Every component must be in the plan, for its zeros count without bits, too."""
    scale, zero = blocks.scale, blocks.zero
    dense = scale.stride() == zero.stride() and scale.stride()[2:] == (scale.shape[-1], 1)
    return dense and scale.dtype == zero.dtype == torch.float16 and blocks.tokens >= LEAST_TOKENS and 0 not in widths


def side_of(coded: Coded) -> tuple[Side, SidePlan]:
    """What a kernel is told of ``coded``, and its plan."""
    codes, affine, blocks = coded.codes, coded.scale if coded.scale is not None else coded.zero, coded.blocks
    row, head, token = (0, 0, 0) if affine is None else (affine.stride(0), affine.stride(1), affine.stride(2))
    levels, units = (None, None) if coded.levels is None else unit_levels(level_tables(coded.levels))
    side = Side(
        codes=codes,
        row=codes.stride(0),
        head=codes.stride(1),
        group=codes.stride(2),
        scale=coded.scale,
        zero=coded.zero,
        scale_row=row,
        scale_head=head,
        scale_token=token,
        block_scale=None if blocks is None else blocks.scale,
        block_zero=None if blocks is None else blocks.zero,
        block_row=0 if blocks is None else blocks.scale.stride(0),
        block_head=0 if blocks is None else blocks.scale.stride(1),
        component=coded.component,
        levels=levels,
        units=units,
        table=table(coded.widths, codes.device),
        rank=len(coded.widths),
    )
    aligned = codes.data_ptr() % 4 == 0 and all(step % 4 == 0 for step in codes.stride()[:3])
    return side, plan(coded.widths, coded.channel, aligned)


@lru_cache(maxsize=1024)
def unit_levels(tables: LevelTables) -> tuple[Tensor, Tensor]:
    """Levels (9, 256) fp16 by width, in units (9,) of their largest / 127: whole numbers if they lie on that grid."""
    levels = {width: same.value for width, same in tables}
    device = next(iter(levels.values())).device
    by_width = torch.zeros(9, 256, device=device)
    for width, values in levels.items():
        by_width[width, : len(values)] = values
    units = by_width.abs().amax(1) / 127
    units = torch.where(units > 0, units, 1.0)
    return (by_width / units[:, None]).half(), units
