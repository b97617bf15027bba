"""``pca``: keys and values in their principal components, truncated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from kvbench.codecs.frame import Frame
from kvbench.codecs.transforms.fitting import orthonormal_transform, principal_axes
from kvbench.codecs.transforms.ranks import rank_for_energy
from kvbench.compressors.draft import Draft, LayerDraft, SideDraft
from kvbench.compressors.part import Part
from kvbench.compressors.rules import Either, share


@dataclass(frozen=True)
class Pca(Part):
    """Principal components of calibrated keys (around their mean) and values (around zero), the first ``rank`` kept.

    The same subspace as a whitened SVD of the projection weights (Palu, Eigen Attention), with the mean kept apart so
    that QKV biases cost no rank. ``rank`` is a fraction of the width; ``energy`` instead picks each layer's rank by the
    share of variance kept. ``heads=joint`` takes one basis over all KV heads of a layer, ``heads=each`` one per head.
    Keys before RoPE need far less rank and are rotated when they are read.
    """

    name = "pca"
    family = "low rank"
    roles = ("transform",)
    needs_calibration = True
    published = ("pca+hadamard+int:bits=4", "pca+hadamard+int:bits=3")
    rules = (Either(("rank", "energy"), ("rank=0.5", "energy=0.9")), share("rank"), share("energy"))

    rank: float | None = None
    energy: float | None = None
    heads: Literal["joint", "each"] = "joint"
    frame: Frame = "before"

    def apply(self, draft: Draft) -> None:
        """Bases for both sides of every layer."""
        draft.store_keys(self.frame)
        for layer in draft:
            for side in layer.sides:
                self._fit(layer, side, draft)

    def _fit(self, layer: LayerDraft, side: SideDraft, draft: Draft) -> None:
        statistics = layer.calibrated
        groups = 1 if self.heads == "joint" else layer.geometry.kv_heads
        mean, moment = statistics.mean(side.moment), statistics.covariance(side.moment)
        if side is layer.values:  # around zero: see kvbench.codecs.transforms.fitting
            mean, moment = torch.zeros_like(mean), statistics.second(side.moment)
        values, axes = principal_axes(moment, groups)
        width = axes.shape[-1]
        if self.energy is not None:
            rank = rank_for_energy(values, self.energy)
        else:
            rank = max(1, round((self.rank or 0) * width))
        # A basis of full rank loses nothing but what its rounding to 16 bit would.
        kept = draft.dtype if rank == axes.shape[-1] else draft.basis_dtype
        side.transform = orthonormal_transform(axes, mean, rank, kept)
