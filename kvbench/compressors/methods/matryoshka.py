"""``matryoshka``: one nested basis, its rank a knob."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.codecs.transforms.fitting import principal_basis
from kvbench.codecs.transforms.ranks import Allocation
from kvbench.compressors.draft import Draft, LayerDraft, SideDraft
from kvbench.compressors.low_rank import LowRank, allocate


@dataclass(frozen=True)
class Matryoshka(LowRank):
    """MatryoshkaKV before training: orthogonal per-head bases whose first columns are the best of every rank.

    Based on Lin et al. 2024, MatryoshkaKV (arXiv 2410.14731). Stored: per KV head the first components of keys after
    RoPE, around their mean, and of values; ranks differ by layer and side (``allocate`` as in ``palu``). Bases are
    nested: the first r latents of a larger rank are the latents of rank r, so one calibration serves every rank and
    stored latents can be cut later. Differences: the paper distils the bases from this PCA start and searches ranks per
    head by the loss; without training they are PCA, and Fisher information stands for the search.
    """

    name = "matryoshka"
    paper = "arXiv 2410.14731"

    allocate: Allocation = "fisher"

    def apply(self, draft: Draft) -> None:
        """Spectra first, then ranks, then bases."""
        sides = [(layer, side) for layer in draft for side in layer.sides]
        means = [self._centre(layer, side) for layer, side in sides]
        bases = [
            principal_basis(layer.calibrated.second(side.moment) - torch.outer(mean, mean), layer.geometry.kv_heads)
            for (layer, side), mean in zip(sides, means, strict=True)
        ]
        ranks = allocate(self.allocate, self.rank, draft, sides, [basis.values for basis in bases])
        for (_, side), basis, mean, rank in zip(sides, bases, means, ranks, strict=True):
            side.transform = basis.transform(mean, rank, draft.basis_dtype)

    def _centre(self, layer: LayerDraft, side: SideDraft) -> Tensor:
        mean = layer.calibrated.mean(side.moment)
        return torch.zeros_like(mean) if side is layer.values else mean
