"""``svd``: plain SVD of the projection weights, without data."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.codecs.transforms.fitting import principal_basis
from kvbench.compressors.draft import Draft
from kvbench.compressors.low_rank import LowRank


@dataclass(frozen=True)
class Svd(LowRank):
    """Truncated SVD of W_k and W_v: how far low rank gets when nothing is known about the inputs. The honest floor.

    The factor A of W ≈ B A spans the same latents as the leading eigenvectors of W Wᵀ, the second moment of the outputs
    for white inputs. Stored: all KV heads' keys before RoPE, and values, in those coordinates around the projection's
    bias. Nothing of the calibration text enters; calibration only measures the weights.
    """

    name = "svd"

    def apply(self, draft: Draft) -> None:
        """One basis per side and layer, over all heads."""
        draft.store_keys_before_rope()
        for layer in draft:
            for side in layer.sides:
                weight = layer.calibrated.measured(f"{side.moment}_weight")
                bias = layer.calibrated.measured(f"{side.moment}_bias")
                basis = principal_basis(weight @ weight.T, 1)
                side.transform = basis.transform(bias, self.components(len(weight)), draft.basis_dtype)
