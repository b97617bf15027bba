"""``asvd``: SVD of projection weights scaled by how large their inputs are."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.codecs.transforms.fitting import principal_basis
from kvbench.compressors.draft import Draft
from kvbench.compressors.low_rank import LowRank


@dataclass(frozen=True)
class Asvd(LowRank):
    """ASVD: SVD of W_k S and W_v S, S diagonal with the mean magnitude of each input channel to the power ``alpha``.

    Based on Yuan et al. 2023, ASVD (arXiv 2312.05821). Stored: all KV heads' keys before RoPE, and values, projected on
    the left singular vectors of W S, around the projection's bias. Difference: the paper searches ranks by the
    sensitivity of perplexity; here every layer gets the same.
    """

    name = "asvd"
    paper = "arXiv 2312.05821"

    alpha: float = 0.5

    def apply(self, draft: Draft) -> None:
        """One basis per side and layer, over all heads."""
        draft.store_keys_before_rope()
        for layer in draft:
            statistics = layer.calibrated
            scale = (statistics.measured("input_abs_sum") / statistics.count).pow(self.alpha)
            for side in layer.sides:
                scaled = statistics.measured(f"{side.moment}_weight") * scale
                basis = principal_basis(scaled @ scaled.T, 1)
                bias = statistics.measured(f"{side.moment}_bias")
                side.transform = basis.transform(bias, self.components(len(scaled)), draft.basis_dtype)
