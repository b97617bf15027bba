"""``palu``: group-head low rank with rank allocation over layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvbench.codecs.transforms.fitting import orthonormal_transform, principal_axes
from kvbench.codecs.transforms.heads import group_size
from kvbench.codecs.transforms.ranks import Allocation
from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.fixed_basis import rotate_latents
from kvbench.compressors.low_rank import LowRank, allocate
from kvbench.compressors.rules import at_least


@dataclass(frozen=True)
class Palu(LowRank):
    """Palu: one low-rank latent per group of adjacent KV heads, ranks given out over layers, keys and values.

    Based on Chang et al. 2024, Palu (arXiv 2407.21118). Stored: the latents of ``group`` heads together, keys before
    RoPE. The whitened SVD of W_k, W_v per group is computed as PCA of their outputs (uncentred, the same subspace).
    ``allocate`` shares a total of ``rank`` · width out: ``fisher`` weights each layer and side by its mean Fisher
    information, ``sensitivity`` by its measured KLD, ``energy`` by nothing, ``uniform`` gives every layer the same.
    ``hadamard`` rotates the latents by a random Hadamard matrix, absorbed into the basis, as the paper does before
    it quantizes them (``palu:rank=0.7+int:bits=3``). Differences: the paper rounds ranks to 32 and takes Fisher of
    weights; here ranks are whole numbers, a rank that is no power of two is rotated by a random orthogonal matrix, and
    Fisher is that of the outputs. ``group`` falls to the largest divisor of the model's KV heads.
    """

    name = "palu"
    paper = "arXiv 2407.21118"
    published = ("palu+int:bits=4", "palu+int:bits=3")
    rules = (*LowRank.rules, at_least("group", 1, "head"))

    group: int = 4
    allocate: Allocation = "fisher"
    hadamard: bool = True

    def apply(self, draft: Draft) -> None:
        """Spectra first, then ranks, then bases."""
        draft.store_keys_before_rope()
        sides = [(layer, side) for layer in draft for side in layer.sides]
        spectra = [principal_axes(layer.calibrated.second(side.moment), self._groups(layer)) for layer, side in sides]
        ranks = allocate(self.allocate, self.rank, draft, sides, [values for values, _ in spectra])
        for (layer, side), (_, axes), rank in zip(sides, spectra, ranks, strict=True):
            mean = torch.zeros_like(layer.calibrated.mean(side.moment))
            side.transform = orthonormal_transform(axes, mean, rank, draft.basis_dtype)
        if self.hadamard:
            rotate_latents(draft, seed=0)

    def _groups(self, layer: LayerDraft) -> int:
        heads = layer.geometry.kv_heads
        return heads // group_size(heads, self.group)
