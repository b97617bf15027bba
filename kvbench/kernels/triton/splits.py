"""What the Triton kernels share: cutting a sequence between programs, online softmax, and the merge of the parts."""

# mypy: disallow-untyped-defs=False, check-untyped-defs=False

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvbench.kernels.reference import Partial

LOWEST = tl.constexpr(-1e30)
"""The score of a masked token: finite, so that differences of scores stay defined."""

LOG2E = tl.constexpr(1.4426950408889634)
"""Scores are kept in units of log 2: the hardware's exponential is 2^x."""

_PROGRAMS = 4
"""Programs per multiprocessor, as many as run there at once."""

_MOST_ROWS = 64
"""Most query rows of a program; more of them read keys and values once per so many."""


class Mask(NamedTuple):
    """Bytes of a mask (batch, groups or 1, 1, tokens), True = attend, and their strides; None: all tokens."""

    bytes: Tensor | None
    row: int
    head: int
    token: int


class Query(NamedTuple):
    """Queries (batch, groups, rows, rank), contiguous, and what scores are scaled by."""

    data: Tensor
    groups: int
    rows: int
    scaling: float


class Out(NamedTuple):
    """What a kernel writes: outputs (…, rows, rank) and log-sum-exps (…, rows) of splits, or of their merge."""

    data: Tensor
    lse: Tensor


class Cut(NamedTuple):
    """Programs: (splits, groups · row blocks, batch), ``rows`` padded query rows each."""

    splits: int
    blocks: int
    rows: int


def cut(batch: int, groups: int, rows: int, tiles: int, device: torch.device) -> Cut:
    """Splits of ``tiles`` that occupy the whole device."""
    padded = max(16, min(_MOST_ROWS, triton.next_power_of_2(rows)))
    blocks = triton.cdiv(rows, padded)
    splits = _PROGRAMS * _multiprocessors(device) // (batch * groups * blocks)
    return Cut(max(1, min(splits, tiles)), blocks, padded)


def as_mask(mask: Tensor | None, batch: int, groups: int) -> Mask:
    """``mask`` as kernels read it."""
    if mask is None:
        return Mask(None, 0, 0, 0)
    whole = mask.expand(batch, groups, 1, mask.shape[-1]).view(torch.uint8)
    return Mask(whole, whole.stride(0), whole.stride(1), whole.stride(3))


def merged(parts: Out) -> Partial:
    """One softmax over the splits of ``parts``, (batch, groups, splits, rows, rank) and (…, splits, rows)."""
    batch, groups, splits, rows, rank = parts.data.shape
    if splits == 1:
        return Partial(parts.data[:, :, 0], parts.lse[:, :, 0])
    whole = Out(parts.data.new_empty(batch, groups, rows, rank), parts.lse.new_empty(batch, groups, rows))
    padded = triton.next_power_of_2(splits), triton.next_power_of_2(rank)
    _merge[(rows, batch * groups)](parts, whole, splits, rows, rank, *padded)
    return Partial(whole.data, whole.lse)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Kernels start on the current device: make it this one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@lru_cache(maxsize=8)
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@triton.jit
def visible(mask, batch, head, token, inside, score):
    """``score`` (rows, tokens), lowest where a token is masked, minus infinity behind the last one."""
    if mask.bytes is not None:
        seen = tl.load(mask.bytes + batch * mask.row + head * mask.head + token * mask.token, inside, 0)
        score = tl.where(seen[None, :] != 0, score, LOWEST)
    return tl.where(inside[None, :], score, -float("inf"))


@triton.jit
def store_lse(query, out, top, mass, row, splits):
    """Store a split's log-sum-exp; where its output rows begin."""
    part = (tl.program_id(2) * query.groups + tl.program_id(1) % query.groups).to(tl.int64) * splits + tl.program_id(0)
    tl.store(out.lse + part * query.rows + row, (top + tl.log2(mass)) / LOG2E, row < query.rows)
    return part * query.rows + row


@triton.jit
def _merge(parts, whole, splits, rows, rank, SPLITS: tl.constexpr, RANK: tl.constexpr):
    """One row of ``parts``, (pairs, splits, rows, rank) and (pairs, splits, rows), to ``whole`` without the splits."""
    row, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    split, column = tl.arange(0, SPLITS), tl.arange(0, RANK)[None, :]
    lse = tl.load(parts.lse + (pair * splits + split) * rows + row, split < splits, -float("inf"))
    top = tl.max(lse, 0)
    mass, mixed = tl.sum(tl.exp(lse - top), 0), tl.full([1, RANK], 0.0, tl.float32)
    for start in tl.range(0, splits, 16):  # so many rows of outputs as registers hold
        some = start + tl.arange(0, 16)[:, None]
        at = (pair * splits + some) * rows + row
        weight = tl.exp(tl.load(parts.lse + at, some < splits, -float("inf")) - top)
        outputs = tl.load(parts.data + at * rank + column, (some < splits) & (column < rank), 0)
        mixed += tl.sum(outputs * weight, 0)[None, :]
    tl.store(whole.data + (pair * rows + row) * rank + column, mixed / mass, column < rank)
    tl.store(whole.lse + pair * rows + row, top + tl.log(mass))
