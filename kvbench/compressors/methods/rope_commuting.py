"""``rope-commuting``: keys mixed across heads, one frequency at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvbench.codecs.transforms.fitting import Basis, principal_basis
from kvbench.codecs.transforms.rope import commuting_basis, frequency_pairs
from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.low_rank import LowRank
from kvbench.errors import UnsupportedModelError


@dataclass(frozen=True)
class RopeCommuting(LowRank):
    """The coordinates in which keys can be rotated before or after compression: complex PCA over heads per frequency.

    After RoRoPE of TransMLA (Meng et al. 2025, arXiv 2502.07864), without its second step: nothing loses its rotation.
    Stored: the strongest components of any frequency, after RoPE, around the mean of the rotated keys; values as joint
    PCA. Queries can be taken into the same coordinates, so keys need not be rebuilt. Differences: one rank for the
    whole layer instead of whole heads, and no folding of adjacent frequencies, which would only nearly commute. With
    a single KV head it can only drop frequencies.
    """

    name = "rope-commuting"
    paper = "arXiv 2502.07864"

    def apply(self, draft: Draft) -> None:
        """Complex bases of the keys, real ones of the values."""
        for layer in draft:
            statistics = layer.calibrated
            mean, second = statistics.mean("rotated_key"), statistics.second("value")
            # Real and imaginary parts stay together: half a component would not commute.
            layer.keys.transform = self._keys(layer).transform(
                mean, 2 * self.components(len(mean) // 2), draft.basis_dtype
            )
            rank = self.components(len(second))
            layer.values.transform = principal_basis(second, 1).transform(
                torch.zeros(len(second)), rank, draft.basis_dtype
            )

    def _keys(self, layer: LayerDraft) -> Basis:
        geometry, statistics = layer.geometry, layer.calibrated
        if geometry.rotary_dims == 0:
            raise UnsupportedModelError("rope-commuting: this model has no RoPE to commute with; use pca")
        before, after = statistics.second("key"), statistics.second("rotated_key")
        pairs = frequency_pairs(before, after, geometry.kv_heads, geometry.rotary_dims)
        return commuting_basis(statistics.covariance("rotated_key"), geometry.kv_heads, pairs)
