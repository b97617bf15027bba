"""Keys that the Triton kernel rebuilds: what it is told of them, and queries for the dimensions that it does not."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from kvbench.codecs.kernel_view import Coded
from kvbench.hooks.turns import Rotary, Turn
from kvbench.kernels.rebuilding import RebuiltKeys
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
    """Queries (batch, groups, rows, head_dim) as the codes of each of ``blocks`` meet them, in one matrix product.

    They are turned back to the position of a block's first entry, lose the dimensions that are rebuilt, and are taken
    into the latents: (batch, groups, blocks, rows, rank) fp32, and what the mean adds, (batch, groups, blocks, rows).
    """
    turned = _turned(keys, query, references, blocks)
    batch, groups, _, rows, _ = turned.shape
    if keys.decoder is None or keys.mean is None:
        return turned.contiguous(), turned.new_zeros(batch, groups, blocks, rows)
    heads = keys.decoder.shape[2]
    by_head = turned.unflatten(3, (heads, -1)).permute(1, 3, 0, 2, 4, 5).flatten(2, 4)  # (groups, heads, ·, head_dim)
    basis = keys.decoder.float().permute(0, 2, 3, 1)  # (groups, heads, head_dim, rank)
    latents, shift = torch.matmul(by_head, basis), torch.matmul(by_head, keys.mean.float().unsqueeze(-1))
    both = [
        each.unflatten(2, (batch, blocks, -1)).permute(2, 0, 3, 1, 4, 5).flatten(3, 4).contiguous()
        for each in (latents, shift)
    ]
    return both[0], both[1].squeeze(-1)


def _turned(keys: RebuiltKeys, query: Tensor, references: Rotary, blocks: int) -> Tensor:
    """Queries turned back to every block, (batch, groups, blocks, rows, head_dim) fp32, without rebuilt dimensions.

    With keys R x of a rotation R, q · R x = (Rᵀ q) · x: the same cosines, and sines of the opposite sign.
    """
    assert keys.turn is not None and keys.dims is not None
    kept, partners, signs = _absorbed(keys.turn, keys.dims, query.shape[-1], query.device)
    position = references.positions[..., :blocks].long().clamp(0, references.cos.shape[0] - 1)
    cos, sin = (table[position].float().unsqueeze(-2) for table in (references.cos, references.sin))
    whole = query.float().unsqueeze(2)  # (batch, groups, 1, rows, head_dim)
    rotated = whole[..., : len(partners)] * cos - signs * whole[..., partners] * sin
    rest = whole[..., len(partners) :].expand(*rotated.shape[:-1], -1)
    return torch.cat([rotated, rest], -1) * kept


@lru_cache(maxsize=64)
def _absorbed(turn: Turn, dims: tuple[int, ...], head_dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """One for each of ``head_dim`` components that is absorbed, zero for ``dims``; partners and signs of a rotation."""
    kept = torch.ones(head_dim, device=device)
    kept[list(dims)] = 0
    return kept, torch.tensor(turn.partners, device=device), torch.tensor(turn.signs, device=device)
