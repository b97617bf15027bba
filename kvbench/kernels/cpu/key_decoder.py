"""Key decoders in 8 bits, worked out once per codec: what the CPU kernel multiplies unpacked codes by.

A key dimension is a sum over columns of bytes, times what a byte stands for, times the decoder. The products of the
last two are rounded to multiples of a unit that each dimension has for itself, of up to 15 bits: a first byte that
counts 256 units, and a second one. Four columns make a *step* of the kernel; steps none of whose entries exceed a byte
are multiplied once instead of twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvbench.codecs.kernel_view import Coded, Same
from kvbench.kernels.cpu.column_layout import ColumnLayout, column_layout
from kvbench.kernels.cpu.llvm.rebuild_ops import DIMS, STEP

COLUMNS = 4
"""Columns of a step."""

_MOST = 126 * 256
"""The largest entry, in units: its first byte is at most 127, rounding included."""

_EXACT = 1e-4
"""Error of a key dimension, relative to its own size, below which finer units do not pay for a multiplication."""

_ROOM = 2**30
"""What the sums of 32 bits stay below."""


@dataclass(frozen=True, eq=False)
class KeyDecoder:
    """The arrays of a :class:`~kvbench.kernels.cpu.records.RebuiltSide`."""

    decoder: Any
    offsets: Any
    counts: Any
    unit: Any
    mean: Any
    start: Any
    zero_weight: Any

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, heads, dims), dims up to a multiple of DIMS."""
        return self.unit.shape  # type: ignore[no-any-return]


def in_steps(coded: Coded) -> bool:
    """Whether no four columns are in different channel groups."""
    return _channels(column_layout(coded), coded) is not None


def key_decoder(
    coded: Coded, decoder: Tensor | None, mean: Tensor | None, dims: tuple[int, ...] | None = None
) -> KeyDecoder:
    """The decoder of ``coded`` to keys ``latents · decoder + mean`` (:class:`~kvbench.kernels.rebuilding.RebuiltKeys`);
    the same object for the same quantizer and tensors.
    """
    groups = coded.codes.shape[1]
    channels = 1 if coded.scale is None else coded.scale.shape[-1]
    tensors = (Same(coded.component), Same(decoder), Same(mean))
    numbers = _Numbers(column_layout(coded), groups, len(coded.widths), channels, coded.channel)
    return _key_decoder(numbers, *tensors, dims)


@dataclass(frozen=True)
class _Numbers:
    """What makes numbers of codes, apart from tensors: a cache key."""

    layout: ColumnLayout
    groups: int
    components: int
    channels: int
    channel: int


@lru_cache(maxsize=1024)
def _key_decoder(
    numbers: _Numbers,
    component: Same[Tensor | None],
    decoder: Same[Tensor | None],
    mean: Same[Tensor | None],
    dims: tuple[int, ...] | None,
) -> KeyDecoder:
    layout, components = numbers.layout, numbers.components
    weights, means = _in_full(decoder.value, mean.value, numbers.groups, components, dims)
    size = np.ones(components) if component.value is None else component.value.double().numpy()
    weights = weights * size[:, None, None]  # (groups, components, heads, dims)
    columns = len(layout.component_of_column)
    column_weights = weights[:, layout.component_of_column] * layout.unit.astype(np.float64)[:, None, None]
    padded = np.zeros((numbers.groups, -(-columns // COLUMNS) * COLUMNS, *weights.shape[2:]))
    padded[:, :columns] = column_weights
    unit = _unit(padded, layout)
    entries = np.rint(padded / unit[:, None]).astype(np.int64)
    channel_of_step = _channel_of_step(layout, numbers)
    order, counts = _order(entries, channel_of_step, numbers.channels)
    in_channel = channel_of_step[None, :] == np.arange(numbers.channels)[:, None]
    sums = entries.reshape(numbers.groups, -1, COLUMNS, *unit.shape[1:]).sum(2)
    offset = -128 if layout.looked_up else 0
    start = offset * np.einsum("cs,gshd->cghd", in_channel.astype(np.int64), sums)
    component_channel = np.minimum(np.arange(components) // numbers.channel, numbers.channels - 1)
    by_channel = component_channel[None, :] == np.arange(numbers.channels)[:, None]
    return KeyDecoder(
        decoder=_bytes_in_steps(entries, order, counts),
        offsets=(order * STEP).astype(np.int64),
        counts=counts,
        unit=unit.astype(np.float32),
        mean=means.astype(np.float32),
        start=start.astype(np.int32),
        zero_weight=np.einsum("cr,grhd->cghd", by_channel.astype(np.float64), weights).astype(np.float32),
    )


def _in_full(
    decoder: Tensor | None, mean: Tensor | None, groups: int, components: int, dims: tuple[int, ...] | None
) -> tuple[Any, Any]:
    """Decoder (groups, components, heads, dims) and mean (groups, heads, dims), dims up to a multiple of DIMS."""
    if decoder is None or mean is None:
        decoder = torch.eye(components).view(1, components, 1, components).expand(groups, -1, -1, -1)
        mean = torch.zeros(groups, 1, components)
    if dims is not None:
        decoder, mean = decoder[..., list(dims)], mean[..., list(dims)]
    extra = -decoder.shape[-1] % DIMS
    matrix = np.pad(decoder.double().numpy(), [(0, 0)] * 3 + [(0, extra)])
    return matrix, np.pad(mean.double().numpy(), [(0, 0)] * 2 + [(0, extra)])


def _unit(weights: Any, layout: ColumnLayout) -> Any:
    """(groups, heads, dims): as coarse as exactness allows, for ``weights`` (groups, columns, heads, dims)."""
    most = np.abs(weights).max(1)
    spread = np.full(weights.shape[1], 1.0)  # mean square of a column's bytes, up to a common factor
    if layout.looked_up:
        spread[: len(layout.unit)] = np.minimum(1 / np.maximum(layout.unit.astype(np.float64), 1e-30), 127.0) ** 2
    size = np.einsum("c,gchd->ghd", spread, weights**2)
    rounding = spread.sum() / 12
    unit = np.maximum(most / _MOST, _EXACT * np.sqrt(size / rounding))
    unit = np.maximum(unit, 255 * np.abs(weights).sum(1) / _ROOM)
    return np.where(unit > 0, unit, 1.0)


def _channels(layout: ColumnLayout, coded: Coded) -> Any:
    """The channel group of every step; None if one has columns of several."""
    channels = 1 if coded.scale is None else coded.scale.shape[-1]
    return _channel_of_step(layout, _Numbers(layout, 1, len(coded.widths), channels, coded.channel))


def _channel_of_step(layout: ColumnLayout, numbers: _Numbers) -> Any:
    of_column = np.minimum(layout.component_of_column // numbers.channel, numbers.channels - 1)
    steps = np.pad(of_column, (0, -len(of_column) % COLUMNS), mode="edge").reshape(-1, COLUMNS)
    return steps[:, 0] if bool((steps == steps[:, :1]).all()) else None


def _order(entries: Any, channel_of_step: Any, channels: int) -> tuple[Any, Any]:
    """Steps by channel group, coarse ones twice: first for their first bytes, then among all others.

    And per channel group (channels, 3): where it begins, how many are for first bytes, how many for second ones.
    """
    largest = np.abs(entries).max((0, 2, 3)).reshape(-1, COLUMNS).max(1)
    order: list[int] = []
    counts = []
    for channel in range(channels):
        steps = np.flatnonzero((channel_of_step == channel) & (largest > 0))
        coarse = steps[largest[steps] > 127]
        counts.append([len(order), len(coarse), len(steps)])
        order += [*coarse.tolist(), *steps.tolist()]
    return np.array(order, np.int64), np.array(counts, np.int64)


def _bytes_in_steps(entries: Any, order: Any, counts: Any) -> Any:
    """int8 (groups, heads, dims / DIMS, steps, DIMS, 4 columns)."""
    high = (entries + 128) >> 8
    low = entries - (high << 8)
    is_high = np.zeros(len(order), bool)
    for first, coarse, _ in counts:
        is_high[first : first + coarse] = True
    groups, _, heads, dims = entries.shape
    both = np.where(is_high[None, :, None, None, None], _steps(high)[:, order], _steps(low)[:, order])
    blocks = both.reshape(groups, len(order), COLUMNS, heads, dims // DIMS, DIMS)
    return np.ascontiguousarray(blocks.transpose(0, 3, 4, 1, 5, 2)).astype(np.int8)


def _steps(entries: Any) -> Any:
    groups, columns, heads, dims = entries.shape
    return entries.reshape(groups, columns // COLUMNS, COLUMNS, heads, dims)
