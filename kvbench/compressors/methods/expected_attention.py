"""``expected-attention``: tokens that queries to come will attend to."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.eviction import Eviction
from kvbench.selectors.base import Budget, Selector
from kvbench.selectors.expected import ExpectedAttentionSelector


@dataclass(frozen=True)
class ExpectedAttention(Eviction):
    """Keeps the tokens of largest expected attention times value norm under Gaussian queries.

    Based on Devoto et al. 2025, Expected Attention (arXiv 2510.00636), as in kvpress. Query-agnostic. Stored: the kept
    tokens and their slots. Differences: the mean (per query head) and covariance (pooled over the heads of a group) of
    queries come from calibration, not from the prompt; they are those of rotated queries at the calibration's
    positions, where the paper rotates unrotated ones by the average rotation of the next 512 positions, which damps
    high frequencies.
    """

    name = "expected-attention"
    paper = "arXiv 2510.00636"
    needs_calibration = True

    def selector(self, layer: LayerDraft, draft: Draft, budget: Budget) -> Selector:
        """Moments of the layer's queries."""
        statistics = layer.calibrated
        mean = statistics.measured("rotated_query_sum") / statistics.count
        of_group = mean.unflatten(0, (layer.geometry.kv_heads, -1))  # (n_kv, g, d)
        second = statistics.rotated_query_second / statistics.count
        covariance = (second - of_group.transpose(1, 2) @ of_group) / layer.geometry.group_size
        moments = (moment.to(draft.geometry.device, draft.dtype) for moment in (mean, covariance))
        return ExpectedAttentionSelector(budget, *moments)
