"""Expected attention: how much weight queries to come will put on a key, from calibrated query moments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.selectors.base import Leaving, Selector

FUTURE = 512
"""Positions after the newest token that queries are expected at."""


@dataclass(frozen=True, eq=False)
class ExpectedAttentionSelector(Selector):
    """E[exp(s · qᵀk)] = exp(s · μᵀk + s²/2 · kᵀΣk) for Gaussian queries, as a softmax per query head, times ‖v‖.

    Query-agnostic. ``mean`` (heads, head_dim) and ``covariance`` (heads, head_dim, head_dim) are those of every head's
    queries before RoPE. Queries to come have R̄μ and R̄ΣR̄ᵀ, where R̄ is the mean rotation of the next :data:`FUTURE`
    positions; keys are turned by R̄ᵀ instead, which gives the same products. ``epsilon`` is added to the softmax.
    """

    mean: Tensor
    covariance: Tensor
    epsilon: float = 0.0

    def scores(self, leaving: Leaving) -> Tensor:
        """Expected attention of the candidates, mean over the heads of a group, plus ε, times value norm.

        The softmax runs over them and the exact tokens after them.
        """
        keys = leaving.keys[:, :, leaving.begin :].to(self.mean.dtype) * leaving.observed.scaling
        if leaving.observed.applied is not None:
            keys = leaving.observed.applied.transposed_mean(keys, FUTURE)
        means, covariances = (moment.unflatten(0, (keys.shape[1], -1)) for moment in (self.mean, self.covariance))
        heads = zip(means.unbind(1), covariances.unbind(1), strict=True)  # of each group the first, the second, …
        logits = torch.stack([_expected(keys, mean, covariance) for mean, covariance in heads], 2)  # (B, n_kv, g, T)
        if leaving.first is not None:  # padding, and the sinks of padded rows
            slots = leaving.start + torch.arange(leaving.begin, leaving.keys.shape[2], device=keys.device)
            barred = slots < (leaving.first + leaving.begin)[:, None, None, None]
            logits = logits.masked_fill(barred, torch.finfo(logits.dtype).min)
        values = leaving.candidates[1].to(keys.dtype)
        attention = logits.softmax(-1).mean(2)[..., : values.shape[2]]
        return (attention + self.epsilon) * values.norm(dim=-1)

    def tensors(self) -> list[Tensor]:
        """Mean and covariance."""
        return [self.mean, self.covariance]


def _expected(keys: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Log of the expected exp(qᵀk), (batch, kv heads, tokens), for one query head of every group.

    ``mean`` is (kv heads, head_dim), ``covariance`` (kv heads, head_dim, head_dim).
    """
    return torch.einsum("bhtd,bhtd->bht", keys, mean[:, None] + torch.matmul(keys, covariance) / 2)
