"""Key decoders in fp16, worked out once per codec: what tensor cores multiply codes by to rebuild keys.

A key dimension is a sum over components of a kernel's operands, times what they stand for, times the decoder. The
products of the last two are divided by a unit that each dimension has for itself, so that the largest is as large as
fp16 takes, and kept in one fp16 part or two. What one part loses is made good at the middle of the codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from kvbench.codecs.kernel_view import LevelTables, Same, level_tables
from kvbench.hooks.turns import Turn
from kvbench.kernels.rebuilding import RebuiltKeys
from kvbench.kernels.triton.operands import BOOST
from kvbench.kernels.triton.sides import unit_levels
from kvbench.kernels.triton.unpack import SUBNORMAL
from kvbench.kernels.triton.unpack_plan import LEAST, Dims

_MOST_DIMS = 64
"""Most columns of a product: registers hold two products of a tile, and the cosines and sines of one."""


@dataclass(frozen=True, eq=False)
class Columns:
    """Which ``dims`` of a head are rebuilt, in the order of their decoder's columns, and how they are read.

    First come the first dimensions of RoPE's pairs, then their partners, then what is not rotated. ``order`` (columns,)
    int32 are the same dimensions on the device, ``signs`` (pairs,) those of the sines that partners are taken with.
    """

    dims: tuple[int, ...]
    order: Tensor
    signs: Tensor
    blocks: tuple[Dims, ...]


@lru_cache(maxsize=64)
def columns(turn: Turn | None, dims: tuple[int, ...], device: torch.device) -> Columns:
    """The columns for ``dims``, of which both of a pair or none are there, rotated as ``turn`` says."""
    partners, signs = ((), ()) if turn is None else (turn.partners, turn.signs)
    firsts = [dim for dim in dims if dim < len(partners) and dim < partners[dim]]
    rest = [dim for dim in dims if dim >= len(partners)]
    pairs = len(firsts)
    order = (*firsts, *(partners[dim] for dim in firsts), *rest)
    assert len(order) == len(dims), "a dimension is rebuilt without its partner"
    blocks = [_block((start, pairs + start), pairs - start) for start in range(0, pairs, _MOST_DIMS)]
    blocks += [_block((2 * pairs + start,), len(rest) - start) for start in range(0, len(rest), _MOST_DIMS)]
    return Columns(
        order,
        torch.tensor(order, dtype=torch.int32, device=device),
        -torch.tensor([signs[dim] for dim in firsts], dtype=torch.float32, device=device),
        tuple(blocks),
    )


def _block(firsts: tuple[int, ...], left: int) -> Dims:
    count = min(left, _MOST_DIMS)
    return Dims(firsts, count, max(LEAST, 1 << (count - 1).bit_length()))


class KeyDecoder(NamedTuple):
    """The tables of a :class:`~kvbench.kernels.triton.rebuilt.RebuiltSide`.

    ``decoder``, and in ``rest`` what it lacks, (groups, heads, rank, columns) fp16; ``unit`` and ``mean`` (groups,
    heads, columns), ``loss`` and ``zeros`` (channel groups, groups, heads, columns) fp32.
    """

    decoder: Tensor
    rest: Tensor | None
    unit: Tensor
    mean: Tensor
    loss: Tensor
    zeros: Tensor


def key_decoder(keys: RebuiltKeys, dims: tuple[int, ...], precise: bool) -> KeyDecoder:
    """The decoder of ``keys`` to ``dims`` of every head, ``precise`` in two parts; the same for the same tensors."""
    coded = keys.coded
    levels = None if coded.levels is None else level_tables(coded.levels)
    tensors = Same(coded.component), Same(keys.decoder), Same(keys.mean)
    numbers = _Numbers(coded.widths, coded.channel, coded.codes.device, levels, *tensors)
    return _key_decoder(numbers, dims, precise)


@dataclass(frozen=True)
class _Numbers:
    """What makes keys of codes: a cache key."""

    widths: tuple[int, ...]
    channel: int
    device: torch.device
    levels: LevelTables | None
    component: Same[Tensor | None]
    decoder: Same[Tensor]
    mean: Same[Tensor]


@lru_cache(maxsize=1024)
def _key_decoder(numbers: _Numbers, dims: tuple[int, ...], precise: bool) -> KeyDecoder:
    weights, mean = _in_full(numbers, dims)
    width = torch.tensor(numbers.widths, device=numbers.device)
    if numbers.levels is None:
        code_unit, middle = torch.full(width.shape, SUBNORMAL.value, device=numbers.device), 2.0**width / 2
    else:
        code_unit, middle = unit_levels(numbers.levels)[1][width], torch.zeros(width.shape, device=numbers.device)
    operands = weights * code_unit.double()[:, None, None]
    unit = operands.abs().amax(1) / BOOST.value
    unit = torch.where(unit > 0, unit, 1.0)
    operands = operands / unit.unsqueeze(1)
    decoder = operands.half()
    lost = operands - decoder.double()
    rest = lost.half() if precise else None
    lost = lost if rest is None else lost - rest.double()
    channel_of = torch.arange(len(numbers.widths), device=numbers.device) // numbers.channel
    in_channel = (channel_of == torch.arange(int(channel_of[-1]) + 1, device=numbers.device)[:, None]).double()
    loss = torch.einsum("cr,grhd->cghd", in_channel * (middle / code_unit).double(), lost) * unit
    return KeyDecoder(
        decoder=decoder.transpose(1, 2).contiguous(),
        rest=None if rest is None else rest.transpose(1, 2).contiguous(),
        unit=unit.float(),
        mean=mean.float().contiguous(),
        loss=loss.float(),
        zeros=torch.einsum("cr,grhd->cghd", in_channel, weights).float(),
    )


def _in_full(numbers: _Numbers, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """fp64: what a component adds to each dimension (groups, rank, heads, dims), and means (groups, heads, dims)."""
    rank, device = len(numbers.widths), numbers.device
    decoder, mean, component = numbers.decoder.value, numbers.mean.value, numbers.component.value
    factor = torch.ones(rank, device=device) if component is None else component
    factor = factor.double() * torch.tensor([width > 0 for width in numbers.widths], device=device)
    chosen = list(dims)
    return decoder[..., chosen].double() * factor[:, None, None], mean[..., chosen].double()
