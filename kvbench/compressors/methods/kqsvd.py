"""``kqsvd``: keys as the queries see them, values as the output projection sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvbench.codecs.transforms.fitting import weighted_basis
from kvbench.codecs.transforms.rope import frequency_pairs, rotation_averaged
from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.low_rank import LowRank


@dataclass(frozen=True)
class KqSvd(LowRank):
    """KQ-SVD: the coordinates that leave the least error in the scores q·k, and in the outputs W_o v.

    Based on Lesens et al. 2025, KQ-SVD (arXiv 2512.05916): no basis of the keys alone, nor one shared with the queries
    (Eigen Attention), has a smaller score error at the same rank. Stored: latents per KV head (``heads=joint``: of all
    heads together) of keys after RoPE, around their mean, and of values. ``frame=before`` keeps keys unrotated, with
    the query metric averaged over rotations, since a query meets a key at any distance. Differences: the paper does not
    centre keys (centring lowers the error and costs no rank), and takes M^½ of the keys instead of the queries, which
    is the same optimum.
    """

    name = "kqsvd"
    paper = "arXiv 2512.05916"
    published = ("kqsvd+hadamard+int:bits=4", "kqsvd:heads=joint,frame=before+hadamard+int:bits=4")

    frame: Literal["before", "after"] = "after"
    heads: Literal["joint", "each"] = "each"

    def apply(self, draft: Draft) -> None:
        """Weighted bases for both sides of every layer."""
        if self.frame == "before":
            draft.store_keys_before_rope()
        for layer in draft:
            statistics = layer.calibrated
            groups = 1 if self.heads == "joint" else layer.geometry.kv_heads
            keys, moment = layer.keys, layer.keys.moment
            basis = weighted_basis(statistics.covariance(moment), torch.block_diag(*self._queries(layer)), groups)
            rank = self.components(basis.values.shape[1])
            keys.transform = basis.transform(statistics.mean(moment), rank, draft.basis_dtype)
            outputs = torch.block_diag(*statistics.measured("output_gram"))
            basis = weighted_basis(statistics.second("value"), outputs, groups)
            rank = self.components(basis.values.shape[1])
            layer.values.transform = basis.transform(torch.zeros(len(outputs)), rank, draft.basis_dtype)

    def _queries(self, layer: LayerDraft) -> Tensor:
        """Σ q qᵀ per KV head in the frame of the stored keys, (kv_heads, head_dim, head_dim)."""
        geometry, statistics = layer.geometry, layer.calibrated
        if self.frame == "after" or geometry.rotary_dims == 0:
            return statistics.rotated_query_second / statistics.count
        before, after = statistics.second("key"), statistics.second("rotated_key")
        pairs = frequency_pairs(before, after, geometry.kv_heads, geometry.rotary_dims)
        return rotation_averaged(statistics.query_second / statistics.count, pairs)
