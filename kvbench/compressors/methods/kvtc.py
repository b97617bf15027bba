"""``kvtc``: transform coding, PCA latents with mixed bits by reverse water-filling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.compressors.allocation import Side, side_weights
from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part
from kvbench.quantizers.allocation import grain, water_fill
from kvbench.quantizers.codebook import CodebookQuantizer
from kvbench.quantizers.lloyd import MAX_BITS
from kvbench.transforms.fitting import orthonormal_transform, principal_axes
from kvbench.transforms.ranks import Allocation


@dataclass(frozen=True)
class Kvtc(Part):
    """KV transform coding: joint-heads PCA of keys (before RoPE) and values, then as many bits per component as pay.

    Based on NVIDIA's KVTC (arXiv 2511.01815). Stored: packed codes of 0 to 8 bits per component and nothing else per
    token; bases, means, deviations and the Lloyd–Max tables belong to the model. ``bits`` is the mean over keys and
    values. ``allocate`` gives them out: ``uniform`` to every layer alike, ``shift`` bits of them moved from keys to
    values, which are harder on small GQA models (default 1); ``sensitivity`` by one water level over the whole model,
    errors weighted by the measured KLD of each layer's keys and values; ``fisher`` by mean Fisher information instead;
    ``energy`` unweighted.
    Differences: one basis per layer instead of one for all, static scales instead of 16-bit scales per block, a
    Laplace codebook instead of uniform steps, no entropy coding.
    """

    name = "kvtc"
    family = "transform coding"
    roles = ("transform", "quantizer")
    paper = "arXiv 2511.01815"
    needs_calibration = True
    absorbs = "values"

    bits: float
    shift: float = 1.0
    allocate: Allocation = "uniform"

    def __post_init__(self) -> None:
        self.require(0 < self.bits <= MAX_BITS, f"bits={self.bits:g} must be in (0, {MAX_BITS}]")

    def apply(self, draft: Draft) -> None:
        """Coordinates of both sides of every layer, then widths, then codebooks."""
        draft.store_keys_before_rope()
        sides = [(layer, side) for layer in draft for side in layer.sides]
        spectra = [principal_axes(layer.calibrated.covariance(side.moment), 1) for layer, side in sides]
        variances = [values for (values,), _ in spectra]
        widths = self._alike(variances) if self.allocate == "uniform" else self._shared(draft, sides, variances)
        for (layer, side), (_, axes), own, width in zip(sides, spectra, variances, widths, strict=True):
            kept = max(1, int((width > 0).sum()))
            side.transform = orthonormal_transform(axes, layer.calibrated.mean(side.moment), kept, draft.dtype)
            deviation = own[:kept].sqrt().clamp_min(1e-6).to(draft.geometry.device, draft.dtype)
            side.quantizer = CodebookQuantizer(tuple(width[:kept].tolist()), deviation)

    def _alike(self, variances: list[Tensor]) -> list[Tensor]:
        """Every layer the same bits, ``shift`` of them moved from its keys to its values."""
        most = min(self.bits / 2, MAX_BITS - self.bits)
        shift = max(-most, min(self.shift, most))
        bits = [self.bits - shift, self.bits + shift] * (len(variances) // 2)
        sides = [(own, round(mean * len(own))) for own, mean in zip(variances, bits, strict=True)]
        return [water_fill(own, budget, together=grain(len(own))) for own, budget in sides]

    def _shared(self, draft: Draft, sides: Sequence[Side], variances: list[Tensor]) -> list[Tensor]:
        """One water level for the whole model."""
        weights = side_weights(self.allocate, draft, sides)
        weighted = torch.cat([own * weight for own, weight in zip(variances, weights, strict=True)])
        counts = [len(own) for own in variances]
        return list(water_fill(weighted, round(self.bits * sum(counts)), together=grain(min(counts))).split(counts))
