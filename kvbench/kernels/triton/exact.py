"""Decode attention over exact keys and values on the GPU: flash-decoding in the queries' dtype."""

# mypy: disallow-untyped-defs=False, check-untyped-defs=False

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvbench.kernels.reference import Partial
from kvbench.kernels.triton.splits import LOG2E, LOWEST, Out, Query, as_mask, cut, merged, on, store_lse, visible

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDEST = 256
"""Channels of keys beyond which a tile of them does not fit into shared memory beside the queries."""
_TILE = 64


class _States(NamedTuple):
    """Keys or values (batch, groups, tokens, rank) and their strides."""

    data: Tensor
    row: int
    head: int
    token: int
    rank: int


@dataclass(frozen=True)
class _Sizes:
    """What is compiled into a kernel: query rows and tokens of a tile, and the ranks as powers of two."""

    rows: int
    tile: int
    key_rank: int
    value_rank: int


def triton_exact_decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    before: tuple[Tensor, Tensor] | None = None,
) -> Partial:
    """Attention of ``query`` (batch, …, rank) over ``keys``, ``values`` (batch, groups, tokens, ·).

    Axes of the query between the first and the last count its heads, and so do those of the output. Each bf16, fp16 or
    fp32: keys and values are converted to the queries' dtype as they are read. Sums, the output and its log-sum-exp are
    fp32. ``mask`` is boolean, broadcastable to (batch, groups or 1, 1, tokens). Keys and values are read once for up to
    64 rows. ``before``: those of earlier tokens.
    """
    if before is not None:
        keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
    (batch, *heads, rank), (groups, tokens, value_rank) = query.shape, values.shape[1:]
    query = query.reshape(batch, groups, -1, rank)
    rows = query.shape[2]
    how = cut(batch, groups, rows, triton.cdiv(tokens, _TILE), query.device)
    out = Out(
        torch.empty(batch, groups, how.splits, rows, value_rank, device=query.device),
        torch.empty(batch, groups, how.splits, rows, device=query.device),
    )
    sizes = _Sizes(how.rows, _TILE, _padded(rank), _padded(value_rank))
    with on(query.device):
        _attend[(how.splits, groups * how.blocks, batch)](
            Query(query.contiguous(), groups, rows, scaling), _states(keys), _states(values),
            as_mask(mask, batch, groups), out, tokens, sizes, num_stages=2,
        )  # fmt: skip
        part = merged(out)
    return Partial(part.output.view(batch, *heads, value_rank), part.lse.view(batch, *heads), "triton")


def _states(states: Tensor) -> _States:
    states = states if states.stride(-1) == 1 else states.contiguous()
    return _States(states, states.stride(0), states.stride(1), states.stride(2), states.shape[-1])


def _padded(rank: int) -> int:
    return max(16, triton.next_power_of_2(rank))


@triton.jit(do_not_specialize=["tokens"])
def _attend(query, keys, values, mask, out, tokens, SIZES: tl.constexpr):
    """Program (split, head and row block, batch): one pass over its tiles."""
    split, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    head = tl.program_id(1) % query.groups
    row = tl.program_id(1) // query.groups * SIZES.rows + tl.arange(0, SIZES.rows)
    component, column = tl.arange(0, SIZES.key_rank), tl.arange(0, SIZES.value_rank)
    at = ((batch * query.groups + head) * query.rows + row)[:, None] * keys.rank + component[None, :]
    queries = tl.load(query.data + at, (row < query.rows)[:, None] & (component < keys.rank)[None, :], 0)
    top, mass = tl.full([SIZES.rows], LOWEST, tl.float32), tl.full([SIZES.rows], 0.0, tl.float32)
    mixed = tl.full([SIZES.rows, SIZES.value_rank], 0.0, tl.float32)
    tiles, splits = tl.cdiv(tokens, SIZES.tile), tl.num_programs(0)
    for tile in tl.range(tiles * split // splits, tiles * (split + 1) // splits):
        token = tile * SIZES.tile + tl.arange(0, SIZES.tile)
        key = _tile(keys, batch, head, token, component, tokens).to(queries.dtype)
        score = tl.dot(queries, tl.trans(key), input_precision="ieee") * (query.scaling * LOG2E)
        score = visible(mask, batch, head, token, token < tokens, score)
        highest = tl.maximum(top, tl.max(score, 1))
        fade, weight = tl.exp2(top - highest), tl.exp2(score - highest[:, None])
        value = _tile(values, batch, head, token, column, tokens).to(queries.dtype)
        mass = mass * fade + tl.sum(weight, 1)
        mixed = tl.dot(weight.to(value.dtype), value, mixed * fade[:, None], input_precision="ieee")
        top = highest
    place = store_lse(query, out, top, mass, row, splits)
    there = (row < query.rows)[:, None] & (column < values.rank)[None, :]
    tl.store(out.data + place[:, None] * values.rank + column[None, :], mixed / mass[:, None], there)


@triton.jit
def _tile(states, batch, head, token, column, tokens):
    """(tokens, columns) of a tile."""
    first = states.data + batch * states.row + head * states.head
    there = (token < tokens)[:, None] & (column < states.rank)[None, :]
    return tl.load(first + token[:, None].to(tl.int64) * states.token + column[None, :], there, 0)
