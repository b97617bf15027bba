"""Decode attention on packed codes: the record that the CPU kernel reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvbench.codecs.kernel_view import BlockAffine, Coded
from kvbench.kernels.cpu.column_layout import column_layout
from kvbench.kernels.cpu.exact import exact_side
from kvbench.kernels.cpu.llvm.matrix_ops import has_matrices
from kvbench.kernels.cpu.llvm.rebuild_ops import COLUMNS
from kvbench.kernels.cpu.llvm.vectors import LANES
from kvbench.kernels.cpu.memory import ROWS_AT_ONCE
from kvbench.kernels.cpu.rebuilt import rebuilt_side, rotation, turned_query
from kvbench.kernels.cpu.records import (
    CODED,
    CODED_JOB,
    Claims,
    CodedJob,
    CodedSide,
    ExactSide,
    RebuiltSide,
    TurnedQuery,
    fp32_bits,
    nothing,
    pack,
    place,
)
from kvbench.kernels.cpu.step import Pending, Work
from kvbench.kernels.cpu.work_split import mask_bytes, splits_for
from kvbench.kernels.rebuilding import KeyRotation, RebuiltKeys

_ENOUGH = 6
"""Rows of queries that pay for bringing a tile into the order that matrices are multiplied in."""

_MANY = 12
"""The same of codes that others multiply where they lie: for matrices they are brought to a buffer first."""

_SIGNED = 0x80808080
"""Flips the highest bit of four bytes, which turns 0…255 into -128…127."""


def readable(keys: Coded, values: Coded) -> bool:
    """Whether the CPU kernel can read both sides: scales in fp16 or fp32, channel groups of whole vectors.

    Keys may have scales per component in blocks of tokens, a multiple of 16.
    """
    sides_readable = all(_scales_readable(side) for side in (keys, values))
    return sides_readable and _blocks_readable(keys.blocks) and values.blocks is None


def _scales_readable(coded: Coded) -> bool:
    several = coded.scale is not None and coded.scale.shape[-1] > 1
    whole = not several or (coded.channel % LANES == 0 and _groups_repeat(coded))
    dtypes = {each.dtype for each in (coded.scale, coded.zero) if each is not None}
    return whole and len(dtypes) <= 1 and dtypes <= {torch.float16, torch.float32}


def _groups_repeat(coded: Coded) -> bool:
    """Whether second bytes of levels, if there are any, come in the channel groups that the first ones come in."""
    columns, components = len(column_layout(coded).component_of_column), len(coded.widths)
    return _bytes_of_a_level(coded) == 1 or (columns == 2 * components and components % coded.channel == 0)


def _bytes_of_a_level(coded: Coded) -> int:
    """Columns that a component takes at most: two where levels are off the byte grid."""
    stored = sum(width > 0 for width in coded.widths)
    return 2 if len(column_layout(coded).component_of_column) > stored else 1


def _blocks_readable(blocks: BlockAffine | None) -> bool:
    if blocks is None:
        return True
    scale, zero = blocks.scale, blocks.zero
    dense = scale.stride() == zero.stride() and scale.stride()[2:] == (scale.shape[-1], 1)
    return dense and scale.dtype == zero.dtype == torch.float16 and blocks.tokens % LANES == 0


@dataclass(frozen=True, eq=False)
class LatentBasis:
    """Latents z stand for states ``z · decoder + mean``; both are fp16, or both fp32.

    ``decoder`` (groups, rank, KV heads of a group, head_dim), ``mean`` (groups, KV heads of a group, head_dim).
    """

    decoder: Tensor
    mean: Tensor

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.decoder.shape[-1]

    @property
    def usable(self) -> bool:
        """Whether the kernel can read it where it lies."""
        dense = self.decoder.stride(-1) == 1 and self.mean.stride(-1) == 1
        alike = self.decoder.dtype == self.mean.dtype in (torch.float16, torch.float32)
        return dense and alike


Bases = tuple[LatentBasis | None, LatentBasis | None]


class CodedAttention:
    """Decode attention over ``tokens`` stored tokens; only queries, masks and positions are yet to come.

    It knows codes, scales and bases by address alone: whoever uses it keeps them, until the last :class:`Pending` part
    is computed. Queries are (batch, …, width), of ``shape`` (batch,
    groups, rows per group, width), whatever axes their heads are counted by; outputs (batch, …, value rank). With a
    basis for keys, the first of ``bases``, queries are those of the heads (…, head_dim), and are taken into the
    latents; with one for values, outputs are brought back from them. With keys ``beside``, rebuilt or floating-point
    ones (batch, groups, tokens, ·), queries are those of the heads, too; without ``keys`` scores are theirs alone, else
    those of both are added. Where both are there, and not some dimensions are rebuilt, queries are two side by side:
    what keys ``beside`` meet, and what ``keys`` do.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        keys: Coded | None,
        values: Coded,
        tokens: int,
        scaling: float,
        bases: Bases = (None, None),
        beside: RebuiltKeys | Tensor | None = None,
    ) -> None:
        batch, groups, rows, query_width = shape
        key_basis, value_basis = bases
        key_side, stream, value_side = nothing(CodedSide), nothing(CodedSide), _side(values, rows, value_basis, True)
        rebuilt_record, turned, alive = nothing(RebuiltSide), nothing(TurnedQuery), [_arrays(values)]
        exact = exact_side(beside) if isinstance(beside, Tensor) else nothing(ExactSide)
        if keys is not None:
            key_side = _side(keys, rows, key_basis)
            alive.append(_arrays(keys))
        if isinstance(beside, RebuiltKeys):
            turned, arrays = turned_query(beside)
            alive.append(arrays)
            if beside.dims != ():
                stream = _side(beside.coded, rows, None)
                rebuilt_record, arrays = rebuilt_side(beside)
                alive += [arrays, _arrays(beside.coded)]
        multiplied = _multiplied(key_side, value_side, rebuilt_record, rows)
        splits = splits_for(batch * groups, tokens, multiplied)
        units = batch * groups * splits
        job = nothing(CodedJob)._replace(
            splits=splits,
            tokens=tokens,
            heads=groups,
            rows=rows,
            query_width=query_width,
            absorbed_from=query_width - key_side.head_dim if keys is not None and not turned.block else 0,
            scaling=fp32_bits(scaling),
        )
        self._work = Work(units, splits, rows, value_side.head_dim, batch * groups * tokens * multiplied)
        self._job = pack(Claims(0, units, units), job, key_side, rebuilt_record, stream, turned, exact, value_side)
        self._groups, self._alive = groups, tuple(alive)
        self._turns = bool(rebuilt_record.decoder), bool(turned.block)

    def __call__(
        self, query: Tensor, mask: Tensor | None = None, rotated: KeyRotation | None = None, by: str = "numba"
    ) -> Pending:
        """Attention of fp32 ``query``; ``mask`` is boolean, broadcastable to (batch, groups or 1, 1, tokens)."""
        query, job = query.contiguous(), self._job.copy()
        alive: list[object] = [self._alive, query]
        job[_QUERY] = query.data_ptr()
        if mask is not None:
            attended = mask_bytes(mask, query.shape[0], self._groups)
            job[_MASK : _MASK + 3] = attended.address, attended.row_stride, attended.head_stride
            alive.append(attended)
        rotations = () if rotated is None else (rotated.keys, rotated.blocks)
        for rotary, turns, place_of_fields in zip(rotations, self._turns, _ROTATED, strict=False):
            if turns and rotary is not None:
                fields, tensors = rotation(rotary)
                job[place_of_fields : place_of_fields + len(fields)] = fields
                alive.append(tensors)
        return Pending(CODED, job, _OUTPUT, self._work, tuple(query.shape[:-1]), by, alive)

    def __deepcopy__(self, memo: dict[int, Any]) -> CodedAttention:
        """Of the same codes, where they are."""
        return self


_QUERY, _MASK, _OUTPUT = (place(CODED_JOB, name) for name in ("query", "mask", "output"))
_ROTATED = place(CODED_JOB, "rebuilt", "cos"), place(CODED_JOB, "turned", "cos")


def coded_attention(
    query: Tensor,
    keys: Coded | None,
    values: Coded,
    tokens: int,
    scaling: float,
    mask: Tensor | None = None,
    bases: Bases = (None, None),
) -> Pending:
    """:class:`CodedAttention` of ``query`` (batch, groups, rows, key rank), once."""
    shape = query.shape[0], query.shape[1], query.shape[2], query.shape[3]
    return CodedAttention(shape, keys, values, tokens, scaling, bases)(query, mask)


def _multiplied(keys: CodedSide, values: CodedSide, rebuilt: RebuiltSide, rows: int) -> int:
    """How long a token takes: in bytes that three rows of queries are multiplied with, however few bits they are
    stored in. Keys are rebuilt once for all rows, by factors of one byte instead of two."""
    absorbed = rows * (keys.padded_columns + values.padded_columns)
    return (absorbed + rebuilt.slices * COLUMNS * rebuilt.heads * rebuilt.dims // 2) // ROWS_AT_ONCE


def _arrays(coded: Coded) -> object:
    """What the addresses in a side's record belong to, the codes and the basis aside."""
    layout = column_layout(coded)
    return layout, layout.column_scale(coded.component)


def _side(coded: Coded, rows: int, basis: LatentBasis | None, signed: bool = False) -> CodedSide:
    """The record of keys or values; those as ``signed`` bytes."""
    layout = column_layout(coded)
    by_matrices = has_matrices() and rows >= (_MANY if layout.direct else _ENOUGH)
    codes, scale, zero, blocks = coded.codes, coded.scale, coded.zero, coded.blocks
    channel_groups = 1 if scale is None else scale.shape[-1]
    column_scale = layout.column_scale(coded.component)
    decoder, mean = (None, None) if basis is None else (basis.decoder, basis.mean)
    head_dim = len(coded.widths) if basis is None else basis.head_dim
    return CodedSide(
        codes=codes.data_ptr(),
        row_stride=codes.stride(0),
        head_stride=codes.stride(1),
        group_bytes=layout.group_bytes,
        columns=len(layout.component_of_column),
        padded_columns=layout.columns,
        scale=0 if scale is None else scale.data_ptr(),
        zero=0 if zero is None else zero.data_ptr(),
        scale_in_fp32=scale is not None and scale.dtype == torch.float32,
        scale_row_stride=0 if scale is None else scale.stride(0),
        scale_head_stride=0 if scale is None else scale.stride(1),
        channel_groups=channel_groups,
        column_groups=channel_groups * (_bytes_of_a_level(coded) if channel_groups > 1 else 1),
        group_columns=coded.channel if channel_groups > 1 else layout.columns,
        block_tokens=0 if blocks is None else blocks.tokens,
        block_scale=0 if blocks is None else blocks.scale.data_ptr(),
        block_zero=0 if blocks is None else blocks.zero.data_ptr(),
        block_row_stride=0 if blocks is None else blocks.scale.stride(0),
        block_head_stride=0 if blocks is None else blocks.scale.stride(1),
        direct=layout.direct and not by_matrices,
        nibbles=layout.nibbles,
        flip=_SIGNED if signed and (layout.looked_up or max(coded.widths) == 8) else 0,
        affine=layout.affine.ctypes.data,
        unpack_plan=layout.unpack_plan.ctypes.data,
        components=len(coded.widths),
        ordered_columns=layout.ordered,
        component_of_column=layout.component_of_column.ctypes.data,
        column_scale=0 if column_scale is None else column_scale.ctypes.data,
        decoder=0 if decoder is None else decoder.data_ptr(),
        decoder_group_stride=0 if decoder is None else decoder.stride(0),
        decoder_row_stride=0 if decoder is None else decoder.stride(1),
        decoder_head_stride=0 if decoder is None else decoder.stride(2),
        mean=0 if mean is None else mean.data_ptr(),
        mean_group_stride=0 if mean is None else mean.stride(0),
        mean_head_stride=0 if mean is None else mean.stride(1),
        head_dim=head_dim,
        queries_per_head=rows if decoder is None else rows // decoder.shape[2],
        by_matrices=by_matrices,
        basis_in_fp16=decoder is not None and decoder.dtype == torch.float16,
    )
