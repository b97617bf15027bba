"""Keys that the Triton kernel rebuilds: what it is told of them, and queries for the dimensions that it does not."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kvbench.codecs.kernel_view import Coded
from kvbench.hooks.turns import Rotary, Turn
from kvbench.kernels.rebuilding import RebuiltKeys, absorbed_dims
from kvbench.kernels.triton.key_decoder import columns, key_decoder
from kvbench.kernels.triton.sides import LEAST_TOKENS
from kvbench.kernels.triton.unpack_plan import Dims


class RebuiltSide(NamedTuple):
    """Keys to be rebuilt, for ``query`` (batch, groups, rows, head_dim), contiguous.

    Tables have ``width`` columns for each of ``heads`` heads of a group; there are ``places`` heads in all. ``order``
    names their dimensions. ``positions`` are those of the tokens; ``signs`` those of the sines. None: no rotation.
    """

    query: Tensor
    head_dim: int
    scaling: float
    decoder: Tensor
    rest: Tensor | None
    unit: Tensor
    mean: Tensor
    loss: Tensor
    zeros: Tensor
    order: Tensor
    width: int
    heads: int
    places: int
    signs: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    table_rows: int
    table_dims: int
    positions: Tensor | None
    position_row: int
    position_head: int


def rebuilds(coded: Coded, block: int) -> bool:
    """Whether the Triton kernel can rebuild keys from ``coded``, which it reads, with references every ``block``.

    Not if scales are of blocks.
    """
    return coded.blocks is None and (block == 0 or block >= LEAST_TOKENS)


def rebuilt_side(
    keys: RebuiltKeys, query: Tensor, rotary: Rotary | None, scaling: float
) -> tuple[RebuiltSide, tuple[Dims, ...]]:
    """What the kernel is told of ``keys``, and which dimensions it rebuilds."""
    head_dim = query.shape[-1]
    by_column = columns(keys.turn, tuple(range(head_dim)) if keys.dims is None else keys.dims, query.device)
    tables = key_decoder(keys, by_column.dims, query.dtype == torch.float32)
    groups, heads, width = tables.unit.shape
    cos, sin, positions, row, head = None, None, None, 0, 0
    if rotary is not None and keys.turn is not None:
        cos, sin, positions = rotary.cos.contiguous(), rotary.sin.contiguous(), rotary.positions
        positions = positions if positions.stride(-1) == 1 else positions.contiguous()
        row, head = (positions.stride(axis) if positions.shape[axis] > 1 else 0 for axis in (0, 1))
    side = RebuiltSide(
        query=query,
        head_dim=head_dim,
        scaling=scaling,
        **tables._asdict(),
        order=by_column.order,
        width=width,
        heads=heads,
        places=groups * heads,
        signs=None if cos is None else by_column.signs,
        cos=cos,
        sin=sin,
        table_rows=0 if cos is None else cos.shape[0],
        table_dims=0 if cos is None else cos.shape[1],
        positions=positions,
        position_row=row,
        position_head=head,
    )
    return side, by_column.blocks


def absorbed_queries(keys: RebuiltKeys, query: Tensor, references: Rotary, blocks: int) -> tuple[Tensor, Tensor]:
    """Queries (batch, groups, rows, head_dim) as the codes of each of ``blocks`` meet them.

    They lose the dimensions that are rebuilt, are turned back to the position of a block's first entry, and are taken
    into the latents: (batch, groups, blocks, rows, rank) fp32, and what the mean adds, (batch, groups, blocks, rows).
    """
    assert keys.turn is not None and keys.dims is not None
    slow = _slow(keys.turn, keys.dims, query.shape[-1], query.device)
    turned = _turned(query, slow, references, blocks)
    batch, heads = turned.shape[0], keys.decoder.shape[2]
    by_head = turned.unflatten(3, (heads, -1)).permute(1, 3, 0, 2, 4, 5).flatten(2, 4)  # (groups, heads, ·, slow)
    basis = keys.decoder[..., slow.dims].float().permute(0, 2, 3, 1)  # (groups, heads, slow, rank)
    mean = keys.mean[..., slow.dims].float().unsqueeze(-1)
    latents, shift = (
        torch.matmul(by_head, matrix).unflatten(2, (batch, blocks, -1)).permute(2, 0, 3, 1, 4, 5).flatten(3, 4)
        for matrix in (basis, mean)
    )  # (batch, groups, blocks, rows, ·)
    return latents.contiguous(), shift.squeeze(-1).contiguous()


class _Slow(NamedTuple):
    """:class:`~kvbench.kernels.rebuilding.AbsorbedDims` on the device; a dimension that does not rotate is its own
    partner."""

    dims: Tensor
    partners: Tensor
    signs: Tensor


@lru_cache(maxsize=64)
def _slow(turn: Turn, rebuilt: tuple[int, ...], head_dim: int, device: torch.device) -> _Slow:
    dims, partners, signs = absorbed_dims(turn, rebuilt, head_dim)
    numbers = (dims, torch.long), (partners + dims[len(signs) :], torch.long), (signs, torch.float32)
    return _Slow(*(torch.tensor(each, dtype=dtype, device=device) for each, dtype in numbers))


def _turned(query: Tensor, slow: _Slow, references: Rotary, blocks: int) -> Tensor:
    """``slow`` dimensions of queries turned back to every block, (batch, groups, blocks, rows, dims) fp32.

    With keys R x of a rotation R, q · R x = (Rᵀ q) · x: the same cosines, and sines of the opposite sign.
    """
    position = references.positions[..., :blocks].long().clamp(0, references.cos.shape[0] - 1)
    rotated, rest = slow.dims[: len(slow.signs)], len(slow.dims) - len(slow.signs)
    cos, sin = (table[position][..., rotated].float().unsqueeze(-2) for table in (references.cos, references.sin))
    cos, sin = functional.pad(cos, (0, rest), value=1.0), functional.pad(slow.signs * sin, (0, rest))
    whole = query.float().unsqueeze(2)  # (batch, groups, 1, rows, head_dim)
    return whole[..., slow.dims] * cos - whole[..., slow.partners] * sin
