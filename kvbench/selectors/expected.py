"""Expected attention: how much weight queries to come will put on a key, from calibrated query moments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.selectors.base import Leaving, Selector


@dataclass(frozen=True, eq=False)
class ExpectedAttentionSelector(Selector):
    """log(E[exp(s · qᵀk)] · ‖v‖) for Gaussian queries: s · μᵀk + s²/2 · kᵀΣk + log ‖v‖. Query-agnostic.

    ``mean`` (kv heads, head_dim) and ``covariance`` (kv heads, head_dim, head_dim) are those of rotated queries of a
    head group. The softmax's normaliser is the same for all tokens of a head and drops out of the order.
    """

    mean: Tensor
    covariance: Tensor

    def scores(self, leaving: Leaving) -> Tensor:
        """Log expected attention times value norm."""
        keys, values = leaving.candidates
        keys = keys.to(self.mean.dtype) * leaving.scaling
        expected = torch.matmul(keys, self.mean[..., None])[..., 0]
        spread = (torch.matmul(keys, self.covariance) * keys).sum(-1)
        return expected + spread / 2 + values.to(keys.dtype).norm(dim=-1).log()

    def tensors(self) -> list[Tensor]:
        """Mean and covariance."""
        return [self.mean, self.covariance]
