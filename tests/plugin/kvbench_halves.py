"""``halves``: what a compressor of your own looks like, all of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvbench.codecs.transforms.fitting import orthonormal_transform
from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part


@dataclass(frozen=True)
class Halves(Part):
    """Half of every head's channels, and nothing of the rest."""

    name = "halves"
    family = "low rank"
    roles = ("transform",)

    def apply(self, draft: Draft) -> None:
        """One transform for each side of every layer."""
        for layer in draft:
            for side in layer.sides:
                axes = torch.eye(side.head_dim).expand(layer.geometry.kv_heads, -1, -1)
                mean = torch.zeros(layer.geometry.kv_heads * side.head_dim)
                side.transform = orthonormal_transform(axes, mean, side.head_dim // 2, draft.basis_dtype)
