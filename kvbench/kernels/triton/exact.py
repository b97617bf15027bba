"""Decode attention over exact keys and values on the GPU: flash-decoding in the tensors' own dtype."""

# mypy: disallow-untyped-defs=False, check-untyped-defs=False

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvbench.kernels.reference import Partial
from kvbench.kernels.triton.splits import LOG2E, LOWEST, as_mask, cut, merged, on, store_part, visible

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_TILE = 64


class _States(NamedTuple):
    """Keys or values (batch, groups, tokens, rank) and their strides."""

    data: Tensor
    row: int
    head: int
    token: int
    rank: int


def triton_exact_decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    before: tuple[Tensor, Tensor] | None = None,
) -> Partial:
    """Attention of ``query`` (batch, groups, rows, rank) over ``keys``, ``values`` (batch, groups, tokens, ·).

    All bf16, fp16 or fp32; sums, the output and its log-sum-exp are fp32. ``mask`` is boolean, broadcastable to
    (batch, groups or 1, 1, tokens). Keys and values are read once for up to 64 rows. ``before``: those of earlier
    tokens.
    """
    if before is not None:
        keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
    batch, groups, rows, rank = query.shape
    tokens, value_rank = values.shape[2:]
    query = query.contiguous()
    how = cut(batch, groups, rows, triton.cdiv(tokens, _TILE), query.device)
    out = torch.empty(batch, groups, how.splits, rows, value_rank, device=query.device)
    lse = torch.empty(batch, groups, how.splits, rows, device=query.device)
    with on(query.device):
        _attend[(how.splits, groups * how.blocks, batch)](
            query, _states(keys), _states(values), as_mask(mask, batch, groups), out, lse,
            tokens, groups, rows, scaling, how.rows, _TILE, _padded(rank), _padded(value_rank), num_stages=2,
        )  # fmt: skip
        return merged(out, lse)


def _states(states: Tensor) -> _States:
    states = states if states.stride(-1) == 1 else states.contiguous()
    return _States(states, states.stride(0), states.stride(1), states.stride(2), states.shape[-1])


def _padded(rank: int) -> int:
    return max(16, triton.next_power_of_2(rank))


@triton.jit(do_not_specialize=["tokens"])
def _attend(
    query,
    keys,
    values,
    mask,
    out,
    lse,
    tokens,
    groups,
    rows,
    scaling,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    KEY_RANK: tl.constexpr,
    VALUE_RANK: tl.constexpr,
):
    """Program (split, head and row block, batch): one pass over its tiles."""
    split, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    head, row = tl.program_id(1) % groups, tl.program_id(1) // groups * ROWS + tl.arange(0, ROWS)
    component, column = tl.arange(0, KEY_RANK), tl.arange(0, VALUE_RANK)
    at = ((batch * groups + head) * rows + row)[:, None] * keys.rank + component[None, :]
    asked = tl.load(query + at, (row < rows)[:, None] & (component < keys.rank)[None, :], 0).to(
        keys.data.dtype.element_ty
    )
    top, mass = tl.full([ROWS], LOWEST, tl.float32), tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, VALUE_RANK], tl.float32)
    tiles, splits = tl.cdiv(tokens, TILE), tl.num_programs(0)
    for tile in tl.range(tiles * split // splits, tiles * (split + 1) // splits):
        token = tile * TILE + tl.arange(0, TILE)
        key = _tile(keys, batch, head, token, component, tokens)
        score = tl.dot(asked, tl.trans(key), input_precision="ieee") * (scaling * LOG2E)
        score = visible(mask, batch, head, token, token < tokens, score)
        highest = tl.maximum(top, tl.max(score, 1))
        fade, weight = tl.exp2(top - highest), tl.exp2(score - highest[:, None])
        value = _tile(values, batch, head, token, column, tokens)
        mass = mass * fade + tl.sum(weight, 1)
        mixed = tl.dot(weight.to(value.dtype), value, mixed * fade[:, None], input_precision="ieee")
        top = highest
    place = store_part(out, lse, top, mass, row, rows, groups, splits)
    there = (row < rows)[:, None] & (column < values.rank)[None, :]
    tl.store(out + place[:, None] * values.rank + column[None, :], mixed / mass[:, None], there)


@triton.jit
def _tile(states, batch, head, token, column, tokens):
    """(tokens, columns) of a tile."""
    first = states.data + batch * states.row + head * states.head
    there = (token < tokens)[:, None] & (column < states.rank)[None, :]
    return tl.load(first + token[:, None].to(tl.int64) * states.token + column[None, :], there, 0)
