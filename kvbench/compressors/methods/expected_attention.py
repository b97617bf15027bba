"""``expected-attention``: tokens that queries to come will attend to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.eviction import Eviction
from kvbench.compressors.rules import Bounds
from kvbench.errors import UnsupportedModelError
from kvbench.hooks.geometry import LayerGeometry
from kvbench.selectors.base import Budget, Selector
from kvbench.selectors.expected import ExpectedAttentionSelector


@dataclass(frozen=True)
class ExpectedAttention(Eviction):
    """Keeps the tokens of largest expected attention times value norm under Gaussian queries.

    Based on Devoto et al. 2025, Expected Attention (arXiv 2510.00636), as in kvpress. Mean and covariance of every
    query head before RoPE, turned by the mean rotation of the 512 positions after the newest token, give the attention
    that a token can expect; the score is its mean over a group, plus ``epsilon``, times ‖v‖. Query-agnostic. Stored:
    the kept tokens and their slots. Differences: the moments come from calibration, as in kvpress's
    ExpectedAttentionStatsPress, and not from the prompt; the norm is ‖v‖, as in kvpress, where the paper has ‖W_o v‖;
    every KV head keeps as many tokens, where paper and kvpress's evaluation also share them out over heads (AdaKV);
    tokens that leave the window while decoding are judged once, against the window alone. ``epsilon`` is 0 as in
    kvpress's class; its evaluation takes 0.01. Where RoPE depends on the length, the angles ahead are those of a short
    text.
    """

    name = "expected-attention"
    paper = "arXiv 2510.00636"
    needs_calibration = True
    rules = (*Eviction.rules, Bounds("epsilon", 0))

    epsilon: float = 0.0

    def selector(self, layer: LayerDraft, draft: Draft, budget: Budget) -> Selector:
        """Moments of the layer's queries."""
        _require_angles(layer.geometry)
        statistics = layer.calibrated
        mean = statistics.measured("query_sum") / statistics.count  # (heads, d)
        second = statistics.measured("head_query_second") / statistics.count
        covariance = second - torch.einsum("hd,he->hde", mean, mean)
        mean, covariance = (moment.to(draft.geometry.device, draft.dtype) for moment in (mean, covariance))
        return ExpectedAttentionSelector(budget, mean, covariance, self.epsilon)


def _require_angles(layer: LayerGeometry) -> None:
    """Raises UnsupportedModelError: what RoPE does at positions to come is not known."""
    if layer.rotary_dims and not layer.angles and not layer.latent:
        raise UnsupportedModelError(
            f"layer {layer.layer}: cos and sin of this model's RoPE have other columns than keys, so the rotation of "
            "positions to come is not known; choose another eviction (snapkv, knorm)"
        )
