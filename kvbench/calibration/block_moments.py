"""Moments of keys relative to the start of their block, from those before RoPE: nothing is measured again.

A key's place o in its block is independent of the key, and every place is as likely. With R_o x = c(o) x + s(o) x_p
component by component (:class:`kvbench.hooks.turns.Turn`), a moment averaged over places is

    E[R_o M R_oᵀ] = cc ∘ M + cs ∘ M P + sc ∘ P M + ss ∘ P M P,   cc = E[c cᵀ], and so on,

where P swaps the dimensions of every pair. Gradients turn as keys do, so Fisher information follows the same rule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvbench.calibration.statistics import LayerStatistics
from kvbench.codecs.frame import Bands
from kvbench.hooks.geometry import LayerGeometry


def relative_to_block(statistics: LayerStatistics, geometry: LayerGeometry, bands: Bands) -> LayerStatistics:
    """``statistics`` whose keys before RoPE are those in the frame of ``bands`` instead."""
    turns = _Turns.of(geometry, bands)
    return replace(
        statistics,
        key_sum=turns.vector(statistics.key_sum),
        key_second=turns.matrix(statistics.key_second),
        fisher_key=turns.matrix(statistics.fisher_key) if statistics.has_fisher else statistics.fisher_key,
        key_value_second=turns.rows(statistics.key_value_second)
        if statistics.key_value_second.numel()
        else statistics.key_value_second,
    )


@dataclass(frozen=True)
class _Turns:
    """Cosines and signed sines (places, K) of all places in a block, of every head's dimensions; partners (K,)."""

    cos: Tensor
    sin: Tensor
    partners: Tensor

    @classmethod
    def of(cls, geometry: LayerGeometry, bands: Bands) -> _Turns:
        assert geometry.turn is not None
        angles, partners = torch.zeros(geometry.head_dim, dtype=torch.float64), torch.arange(geometry.head_dim)
        rotated = slice(len(geometry.angles))
        angles[rotated] = torch.tensor(geometry.angles, dtype=torch.float64)
        partners[rotated] = torch.tensor(geometry.turn.partners)
        signs = torch.ones_like(angles)
        signs[rotated] = torch.tensor(geometry.turn.signs, dtype=torch.float64)
        angles[list(bands.fast)] = 0.0
        turned = torch.arange(bands.block, dtype=torch.float64)[:, None] * angles.repeat(geometry.kv_heads)
        heads = torch.arange(geometry.kv_heads)[:, None] * geometry.head_dim
        return cls(turned.cos(), turned.sin() * signs.repeat(geometry.kv_heads), (heads + partners).flatten())

    def vector(self, sums: Tensor) -> Tensor:
        """E[R_o x] of ``sums`` (K,)."""
        return self.rows(sums[:, None])[:, 0]

    def rows(self, moment: Tensor) -> Tensor:
        """E[R_o M] of ``moment`` (K, any)."""
        return self.cos.mean(0)[:, None] * moment + self.sin.mean(0)[:, None] * moment[self.partners]

    def matrix(self, moment: Tensor) -> Tensor:
        """E[R_o M R_oᵀ] of ``moment`` (K, K)."""
        swapped = moment[self.partners]
        total = (self.cos.T @ self.cos) * moment + (self.sin.T @ self.sin) * swapped[:, self.partners]
        total += (self.cos.T @ self.sin) * moment[:, self.partners] + (self.sin.T @ self.cos) * swapped
        return total / len(self.cos)
