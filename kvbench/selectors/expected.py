"""Expected attention: how much weight queries to come will put on a key, from calibrated query moments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.selectors.base import Leaving, Selector


@dataclass(frozen=True, eq=False)
class ExpectedAttentionSelector(Selector):
    """E[exp(s · qᵀk)] = exp(s · μᵀk + s²/2 · kᵀΣk) for Gaussian queries, as a softmax per query head, times ‖v‖.

    Query-agnostic. ``mean`` (heads, head_dim) of every head's rotated queries; ``covariance`` (kv heads, head_dim,
    head_dim) around it, pooled over the heads of a group.
    """

    mean: Tensor
    covariance: Tensor

    def scores(self, leaving: Leaving) -> Tensor:
        """Expected attention among the candidates, mean over the heads of a group, times value norm."""
        keys, values = leaving.candidates
        keys = keys.to(self.mean.dtype) * leaving.scaling
        means = self.mean.unflatten(0, (keys.shape[1], -1))  # (n_kv, g, d)
        expected = torch.matmul(means, keys.transpose(-1, -2))  # (B, n_kv, g, T)
        spread = (torch.matmul(keys, self.covariance) * keys).sum(-1, keepdim=True).transpose(-1, -2)
        logits = expected + spread / 2
        if leaving.first is not None:
            padding = leaving.slots() < leaving.first[:, None, None, None]
            logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
        attention = logits.softmax(-1).mean(2)
        return attention * values.to(keys.dtype).norm(dim=-1)

    def tensors(self) -> list[Tensor]:
        """Mean and covariance."""
        return [self.mean, self.covariance]
