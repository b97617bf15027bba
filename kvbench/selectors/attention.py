"""Selectors that look at attention which has happened: SnapKV and TOVA.

Attention is that of a few queries over all exact tokens before them: right after a prompt its whole context, while
decoding the recent window without sinks and body. ``aware`` takes the newest queries, which end with the question that
a prompt was given for; otherwise the newest of the tokens that leave, to which the exact window is still unknown (while
decoding there is but one query, and it counts). A softcap of the model's scores is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kvbench.selectors.base import Leaving, Selector

MAX_SCORES = 1 << 25
"""Most scores held at once (elements); more queries are taken in slices."""


@dataclass(frozen=True)
class SnapKvSelector(Selector):
    """Attention of the last ``window`` queries, average-pooled over ``kernel`` neighbours, mean over a head group."""

    window: int
    kernel: int
    aware: bool = False

    def scores(self, leaving: Leaving) -> Tensor:
        """Pooled attention, KV head by KV head."""
        attention = observed_attention(leaving, self.window, self.aware).mean(2)
        return functional.avg_pool1d(attention, self.kernel, stride=1, padding=self.kernel // 2)


@dataclass(frozen=True)
class TovaSelector(Selector):
    """Attention of the newest query, mean over all heads: every head keeps the same tokens."""

    aware: bool = False

    def scores(self, leaving: Leaving) -> Tensor:
        """One score per token, the same for all KV heads."""
        attention = observed_attention(leaving, 1, self.aware)
        return attention.mean((1, 2)).unsqueeze(1).expand(-1, attention.shape[1], -1)


def observed_attention(leaving: Leaving, window: int, aware: bool) -> Tensor:
    """Summed attention (batch, kv heads, group, candidates) that the last ``window`` queries pay to each candidate.

    The last of all if ``aware``, else of those as old as the tokens that leave.

    A query sees what came before it and no padding; queries that are padding themselves count nothing.
    """
    observed = leaving.observed
    stop = observed.query.shape[2] if aware else leaving.leaving_queries
    query = observed.query[:, :, max(0, stop - window) : stop]
    batch, heads, queries, dim = query.shape
    kv_heads, tokens = leaving.keys.shape[1:3]
    newest = leaving.start + tokens
    oldest = newest - observed.query.shape[2] + max(0, stop - window)  # the slot of the first of these queries
    key_slots = torch.arange(leaving.start, newest, device=query.device)
    total = query.new_zeros(batch, kv_heads, heads // kv_heads, leaving.end - leaving.begin, dtype=torch.float32)
    step = max(1, MAX_SCORES // (batch * heads * tokens))
    for begin in range(0, queries, step):
        part = query[:, :, begin : begin + step]
        slots = torch.arange(part.shape[2], device=query.device) + oldest + begin
        folded = part.reshape(batch, kv_heads, -1, dim)  # (B, n_kv, g·Tq, d)
        logits = torch.matmul(folded, leaving.keys.transpose(-1, -2)).float() * observed.scaling
        logits = logits.view(batch, kv_heads, heads // kv_heads, -1, tokens)
        seen = key_slots <= slots[:, None]
        if leaving.first is not None:
            seen = seen & (key_slots >= leaving.first.view(-1, 1, 1, 1, 1))
        weights = logits.masked_fill(~seen, torch.finfo(logits.dtype).min).softmax(-1) * seen
        total += weights[..., leaving.begin : leaving.end].sum(-2)
    return total
