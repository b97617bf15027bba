"""Key decoders in 8 bits, worked out once per codec: what the CPU kernel multiplies unpacked codes by.

A key dimension is a sum over columns of bytes, times what a byte stands for, times the decoder. The products of the
last two are rounded to multiples of a unit that each dimension has for itself, of up to 15 bits: a first byte that
counts 256 units, and a second one. Columns come in *slices* of as many as the kernel multiplies at once; slices none of
whose entries exceed a byte are multiplied once instead of twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from kvbench.codecs.kernel_view import Coded, Same
from kvbench.kernels.cpu.column_layout import ColumnLayout, column_layout
from kvbench.kernels.cpu.llvm.rebuild_ops import COLUMNS, DIMS, STEP
from kvbench.kernels.cpu.llvm.vectors import LANES

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
    vectors: Any

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, heads, dims), dims up to a multiple of DIMS."""
        return self.unit.shape  # type: ignore[no-any-return]


def key_decoder(coded: Coded, decoder: Tensor, mean: Tensor, dims: tuple[int, ...] | None = None) -> KeyDecoder:
    """The decoder of ``coded`` to keys ``latents · decoder + mean`` (:class:`~kvbench.kernels.rebuilding.RebuiltKeys`);
    the same object for the same quantizer and tensors.
    """
    channels = 1 if coded.scale is None else coded.scale.shape[-1]
    tensors = (Same(coded.component), Same(decoder), Same(mean))
    numbers = _Numbers(column_layout(coded), len(coded.widths), channels, coded.channel)
    return _key_decoder(numbers, *tensors, dims)


@dataclass(frozen=True)
class _Numbers:
    """What makes numbers of codes, apart from tensors: a cache key."""

    layout: ColumnLayout
    components: int
    channels: int
    channel: int


@lru_cache(maxsize=1024)
def _key_decoder(
    numbers: _Numbers,
    component: Same[Tensor | None],
    decoder: Same[Tensor],
    mean: Same[Tensor],
    dims: tuple[int, ...] | None,
) -> KeyDecoder:
    layout, components = numbers.layout, numbers.components
    weights, means = _in_full(decoder.value, mean.value, dims)
    size = np.ones(components) if component.value is None else component.value.double().numpy()
    weights = weights * size[:, None, None]  # (groups, components, heads, dims)
    columns = len(layout.component_of_column)
    column_weights = weights[:, layout.component_of_column] * layout.unit.astype(np.float64)[:, None, None]
    padded = np.zeros((weights.shape[0], -(-columns // COLUMNS) * COLUMNS, *weights.shape[2:]))
    padded[:, :columns] = column_weights
    unit = _unit(padded, layout)
    entries = np.rint(padded / unit[:, None]).astype(np.int64)
    of_column = np.minimum(layout.component_of_column // numbers.channel, numbers.channels - 1)
    of_column = np.pad(of_column, (0, padded.shape[1] - columns), constant_values=-1)
    by_channel = [entries * (of_column == channel)[:, None, None] for channel in range(numbers.channels)]
    slices = [_slices(each) for each in by_channel]
    order = np.concatenate([each.order for each in slices])
    offset = -128 if layout.looked_up else 0
    start = offset * np.stack([each.sum(1) for each in by_channel])
    component_channel = np.minimum(np.arange(components) // numbers.channel, numbers.channels - 1)
    in_channel = component_channel[None, :] == np.arange(numbers.channels)[:, None]
    return KeyDecoder(
        decoder=_in_blocks(np.concatenate([each.factors for each in slices], 1)),
        offsets=(order * (COLUMNS // 4) * STEP).astype(np.int64),
        counts=_counts(slices),
        unit=unit.astype(np.float32),
        mean=means.astype(np.float32),
        start=start.astype(np.int32),
        zero_weight=np.einsum("cr,grhd->cghd", in_channel.astype(np.float64), weights).astype(np.float32),
        vectors=_vectors(order, layout.columns // LANES),
    )


def _in_full(decoder: Tensor, mean: Tensor, dims: tuple[int, ...] | None) -> tuple[Any, Any]:
    """Decoder (groups, components, heads, dims) and mean (groups, heads, dims), dims up to a multiple of DIMS."""
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


@dataclass(frozen=True, eq=False)
class _Slices:
    """Which slices of columns a channel group's keys are sums over, in ``order``, and their ``factors``.

    The first ``coarse`` are there for their first bytes; they come again among all others. Factors are
    (groups, slices, COLUMNS, heads, dims) int8.
    """

    order: Any
    coarse: int
    factors: Any


def _slices(entries: Any) -> _Slices:
    """The slices of ``entries`` (groups, columns, heads, dims) that hold anything."""
    sliced = entries.reshape(entries.shape[0], -1, COLUMNS, *entries.shape[2:])
    largest = np.abs(sliced).max((0, 2, 3, 4))
    used, coarse = np.flatnonzero(largest > 0), np.flatnonzero(largest > 127)
    high = (sliced + 128) >> 8
    low = sliced - (high << 8)
    factors = np.concatenate([high[:, coarse], low[:, used]], 1)
    return _Slices(np.concatenate([coarse, used]), len(coarse), factors.astype(np.int8))


def _counts(slices: Sequence[_Slices]) -> Any:
    """By channel group (channels, 3): its first slice, how many are for first bytes, how many for second ones."""
    firsts = np.cumsum([0, *(len(each.order) for each in slices)])
    rows = [(first, each.coarse, len(each.order) - each.coarse) for first, each in zip(firsts, slices, strict=False)]
    return np.array(rows, np.int64)


def _in_blocks(factors: Any) -> Any:
    """(groups, slices, COLUMNS, heads, dims) → (groups, heads, dims / DIMS, slices, DIMS, COLUMNS)."""
    groups, slices, _, heads, dims = factors.shape
    blocks = factors.reshape(groups, slices, COLUMNS, heads, dims // DIMS, DIMS)
    return np.ascontiguousarray(blocks.transpose(0, 3, 4, 1, 5, 2))


def _vectors(order: Any, count: int) -> Any:
    """Which of ``count`` sixteens of columns slices lie in."""
    first = np.unique(order) * COLUMNS // LANES
    every = (first[:, None] + np.arange(max(1, COLUMNS // LANES))).flatten()
    return np.unique(every[every < count])
