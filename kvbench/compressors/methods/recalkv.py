"""``recalkv``: similar heads share a key latent."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvbench.codecs.transforms.fitting import principal_basis
from kvbench.codecs.transforms.heads import alignment, group_size, over_all_heads, regroup, similar_groups
from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.low_rank import LowRank
from kvbench.compressors.rules import at_least


@dataclass(frozen=True)
class ReCalKv(LowRank):
    """ReCalKV: KV heads regrouped by similarity before a grouped whitened SVD of the keys; values calibrated.

    Based on Yan et al. 2025, ReCalKV (arXiv 2505.24357). Stored: key latents before RoPE of groups of ``group`` heads
    whose outputs are most alike by CKA (greedy), and value latents of all heads together. The paper's alternating least
    squares for the values converges to the whitened SVD on the calibration data, which is taken in closed form.
    Differences: every layer gets the same rank; the reordering is written into the bases, with zeros where a latent
    does not see a head. ``group`` falls to the largest divisor of the model's KV heads.
    """

    name = "recalkv"
    paper = "arXiv 2505.24357"
    rules = (*LowRank.rules, at_least("group", 1, "head"))

    group: int = 4

    def apply(self, draft: Draft) -> None:
        """Grouped keys, joint values."""
        draft.store_keys_before_rope()
        for layer in draft:
            self._fit_keys(layer, draft.basis_dtype)
            second = layer.calibrated.second("value")
            rank = self.components(len(second))
            layer.values.transform = principal_basis(second, 1).transform(
                torch.zeros(len(second)), rank, draft.basis_dtype
            )

    def _fit_keys(self, layer: LayerDraft, dtype: torch.dtype) -> None:
        heads, statistics = layer.geometry.kv_heads, layer.calibrated
        groups = similar_groups(alignment(statistics.covariance("key"), heads), group_size(heads, self.group))
        moment, index = regroup(statistics.second("key"), groups)
        grouped = principal_basis(moment, len(groups))
        basis = over_all_heads(grouped, index, self.components(grouped.values.shape[1]))
        layer.keys.transform = basis.transform(torch.zeros(len(moment)), basis.values.shape[1], dtype)
