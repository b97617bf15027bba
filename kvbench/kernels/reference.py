"""Attention over one part of the context, in plain torch, and the merge of several parts.

A part yields its softmax-normalised output and the log-sum-exp of its scores; parts merge exactly:
``out = Σ_i exp(lse_i − lse) · out_i`` with ``lse = log Σ_i exp(lse_i)`` (the identity behind FlashAttention's
split-K, Dao 2023). Query heads that share a KV head are folded into rows, so a KV head is read once for its group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

MAX_SCORES = 1 << 25
"""Most scores held at once (elements); longer prompts are attended in slices of queries."""
TILE_SCORES = 1 << 20
"""The same for a tile of a compressed body: its scores should not outweigh what compression saves."""

WIDENED = 1024
"""Tokens of 16-bit keys and values that are widened at once: a whole cache in fp32 would double a step's memory."""


class Part(Protocol):
    """Attention over one part of the context, computed already or when its numbers are read.

    ``output`` (batch, heads, queries, value_dim) and ``lse`` (batch, heads, queries), and ``by`` what. Both in at least
    fp32, whatever the model's dtype: parts are rounded once, after they are merged.
    """

    @property
    def output(self) -> Tensor:
        """Normalised within the part."""

    @property
    def lse(self) -> Tensor:
        """Log-sum-exp of the part's scores."""

    @property
    def by(self) -> str:
        """What attended."""


@dataclass(frozen=True)
class Partial:
    """A :class:`Part` in numbers."""

    output: Tensor
    lse: Tensor
    by: str = "torch"


def wide(dtype: torch.dtype) -> torch.dtype:
    """What scores, weights and sums of ``dtype`` are computed in: at least fp32, as torch's fused kernels do."""
    return torch.promote_types(dtype, torch.float32)


def partial_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
) -> Partial:
    """Attention of ``query`` (batch, heads, queries, d) over ``keys``, ``values`` (batch, kv heads, tokens, ·).

    ``mask`` is boolean, broadcastable to (batch, kv heads or 1, queries, tokens), True = attend. Rows without any True
    get the lowest finite score everywhere, so they stay finite and weigh nothing in a merge.
    """
    batch, heads, queries, _ = query.shape
    kv_heads, tokens = keys.shape[1], keys.shape[2]
    if keys.dtype.itemsize == 2 and tokens > WIDENED:
        spans = [slice(start, start + WIDENED) for start in range(0, tokens, WIDENED)]
        return merge(
            [
                partial_attention(
                    query,
                    keys[:, :, span],
                    values[:, :, span],
                    scaling,
                    None if mask is None else mask[..., span],
                    softcap,
                )
                for span in spans
            ]
        )
    group = heads // kv_heads
    query, keys, values = (states.to(wide(query.dtype)) for states in (query, keys, values))
    folded = query.reshape(batch, kv_heads, group * queries, -1)  # (B, n_kv, g·Tq, d)
    if _fusable(query, keys, values, softcap):
        output, lse = _fused(folded, keys, values, scaling, mask, group)
        return Partial(output.view(batch, heads, queries, -1), lse.reshape(batch, heads, queries))
    scores = torch.matmul(folded * scaling, keys.transpose(-1, -2))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        shaped = scores.view(batch, kv_heads, group, queries, tokens)
        scores = shaped.masked_fill(~mask.unsqueeze(2), torch.finfo(scores.dtype).min).view_as(scores)
    top = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    lse = (top + total.log()).squeeze(-1)
    output = torch.matmul(weights / total, values)
    return Partial(output.view(batch, heads, queries, -1), lse.view(batch, heads, queries))


def _fusable(query: Tensor, keys: Tensor, values: Tensor, softcap: float | None) -> bool:
    """Whether torch's fused kernel takes it: several queries, since one is folded over its head group or compiled."""
    return (
        query.shape[2] > 1
        and softcap is None
        and query.device.type == "cpu"
        and keys.shape[-1] == values.shape[-1]
        and not (query.requires_grad or keys.requires_grad or values.requires_grad)
    )


def _fused(
    folded: Tensor, keys: Tensor, values: Tensor, scaling: float, mask: Tensor | None, group: int
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of ``folded`` (batch, kv heads, group · queries, d) by the kernel that is behind torch's
    ``scaled_dot_product_attention`` on CPU: the public function keeps the log-sum-exp, which merges need, to itself.

    No scores are held, and it is some five times as fast.
    """
    bias = None
    if mask is not None:
        lowest = torch.finfo(folded.dtype).min  # not -inf: rows without any token stay finite
        bias = torch.zeros(mask.shape, dtype=folded.dtype).masked_fill_(~mask, lowest)
        bias = bias.unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(2, 3)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # type: ignore[no-any-return]
        folded, keys, values, 0.0, False, attn_mask=bias, scale=scaling
    )


def merge(parts: Sequence[Part]) -> Partial:
    """One softmax over all parts, from the parts alone."""
    if len(parts) == 1:
        return Partial(parts[0].output, parts[0].lse, parts[0].by)
    # Written out: torch.softmax wakes its thread pool for a few numbers, and waits for it.
    top = reduce(torch.maximum, [part.lse for part in parts])
    weights = [torch.exp(part.lse - top) for part in parts]
    total = reduce(torch.add, weights)
    shares = [(weight / total).unsqueeze(-1) for weight in weights]
    outputs = [part.output * share for part, share in zip(parts, shares, strict=True)]
    return Partial(reduce(torch.add, outputs), top + total.log())


def beside_sinks(part: Part, sinks: Tensor | None) -> Tensor:
    """The output of ``part`` if its softmax also ran over a learned score per head, ``sinks`` (heads,), of value zero.

    A sink is one more part: its log-sum-exp is the score, its output zero. What is left of the merge is a weight,
    ``exp(lse) / (exp(lse) + exp(sink))`` (gpt-oss, arXiv 2508.10925; Xiao et al. 2023 for sinks among tokens).
    """
    if sinks is None:
        return part.output
    return part.output * torch.sigmoid(part.lse - sinks.to(part.lse.dtype).view(-1, 1)).unsqueeze(-1)


def exact_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention over exact keys and values that end with the queries' own tokens; the output alone.

    Without a mask the queries are the last tokens and attend causally. A single query is folded over its head group
    (2-3x over ``enable_gqa`` on CPU); in 16 bit, and for prompts, it goes through torch's fused kernel, which keeps
    scores in fp32 without a copy of the keys; with a softcap or ``sinks`` (:func:`beside_sinks`), which that kernel
    lacks, through :func:`partial_attention` in slices of queries. Keys and values stored in another dtype than the
    queries' are converted for the fused kernel, which takes one dtype.
    """
    (batch, heads, queries, dim), (kv_heads, tokens) = query.shape, keys.shape[1:3]
    narrow = query.dtype.itemsize == 2
    if softcap is not None or sinks is not None or (queries == 1 and not narrow):
        return beside_sinks(_sliced(query, keys, values, scaling, mask, softcap), sinks).to(query.dtype)
    keys, values = keys.to(query.dtype), values.to(query.dtype)
    if queries == 1:
        folded = query.reshape(batch, kv_heads, heads // kv_heads, dim)
        output = functional.scaled_dot_product_attention(folded, keys, values, mask, scale=scaling)
        return output.reshape(batch, heads, 1, -1)
    if mask is None and queries < tokens:
        mask = causal_mask(queries, tokens, query.device)
    return functional.scaled_dot_product_attention(
        query, keys, values, mask, scale=scaling, is_causal=mask is None, enable_gqa=query.shape[1] != keys.shape[1]
    )


def causal_mask(queries: int, tokens: int, device: torch.device) -> Tensor:
    """(1, 1, queries, tokens), True = attend, for queries that are the last of the tokens."""
    return torch.ones(queries, tokens, dtype=torch.bool, device=device).tril(tokens - queries)[None, None]


def attention_in_slices(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    most: int | None = None,
) -> Partial:
    """:func:`partial_attention` of as many queries at a time as need no more than ``most`` scores (MAX_SCORES)."""
    queries = query.shape[2]
    if mask is not None:
        mask = mask.expand(*mask.shape[:2], queries, keys.shape[2])
    step = max(1, (most or MAX_SCORES) // (query.shape[0] * query.shape[1] * keys.shape[2]))
    if step >= queries or (mask is None and _fusable(query, keys, values, softcap)):  # that holds no scores
        return partial_attention(query, keys, values, scaling, mask, softcap)
    parts = [
        partial_attention(
            query[:, :, start : start + step],
            keys,
            values,
            scaling,
            None if mask is None else mask[:, :, start : start + step],
            softcap,
        )
        for start in range(0, queries, step)
    ]
    return Partial(torch.cat([part.output for part in parts], 2), torch.cat([part.lse for part in parts], 2))


def _sliced(
    query: Tensor, keys: Tensor, values: Tensor, scaling: float, mask: Tensor | None, softcap: float | None
) -> Partial:
    if mask is None and query.shape[2] > 1:
        mask = causal_mask(query.shape[2], keys.shape[2], query.device)
    return attention_in_slices(query, keys, values, scaling, mask, softcap)
