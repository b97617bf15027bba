"""``eigen``: per-head bases that queries and keys share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.codecs.transforms.fitting import group_blocks, principal_basis
from kvbench.codecs.transforms.ranks import rank_for_energy
from kvbench.compressors.draft import Draft, LayerDraft, SideDraft
from kvbench.compressors.part import Part
from kvbench.compressors.rules import Either, share


@dataclass(frozen=True)
class Eigen(Part):
    """Eigen Attention: keys in the principal axes of queries and keys stacked, values in their own, head by head.

    Based on Saxena et al. 2024, Eigen Attention (arXiv 2408.05646). Stored: per KV head the leading components of keys
    after RoPE and of values, uncentred; a query counts for the head it attends. ``rank`` is a fraction of head_dim for
    all layers, ``energy`` the share of the stacked energy that decides each layer's rank. Differences: the paper lowers
    the threshold layer by layer until the layer's output error meets a budget, and its Llama code drops the queries and
    keeps keys before RoPE (that is ``pca`` uncentred); here the joint basis is used where it is exact, after RoPE.
    """

    name = "eigen"
    family = "low rank"
    roles = ("transform",)
    paper = "arXiv 2408.05646"
    needs_calibration = True
    rules = (Either(("rank", "energy"), ("rank=0.5", "energy=0.9")), share("rank"), share("energy"))

    rank: float | None = None
    energy: float | None = None

    def apply(self, draft: Draft) -> None:
        """One basis per head and side."""
        for layer in draft:
            statistics, heads = layer.calibrated, layer.geometry.kv_heads
            queries = statistics.rotated_query_second / statistics.count
            keys = group_blocks(statistics.second("rotated_key"), heads)
            self._fit(layer, layer.keys, torch.block_diag(*(queries + keys)), draft)
            self._fit(layer, layer.values, statistics.second("value"), draft)

    def _fit(self, layer: LayerDraft, side: SideDraft, moment: Tensor, draft: Draft) -> None:
        basis = principal_basis(moment, layer.geometry.kv_heads)
        if self.energy is not None:
            rank = rank_for_energy(basis.values, self.energy)
        else:
            rank = max(1, round((self.rank or 0) * side.head_dim))
        side.transform = basis.transform(torch.zeros(len(moment)), rank, draft.basis_dtype)
