"""``kvtc``: transform coding, PCA latents with mixed bits by reverse water-filling."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft, LayerDraft, SideDraft
from kvbench.compressors.part import Part
from kvbench.quantizers.allocation import water_fill
from kvbench.quantizers.codebook import CodebookQuantizer
from kvbench.quantizers.lloyd import MAX_BITS
from kvbench.transforms.fitting import orthonormal_transform, principal_axes


@dataclass(frozen=True)
class Kvtc(Part):
    """KV transform coding: joint-heads PCA of keys (before RoPE) and values, then as many bits per component as pay.

    Based on NVIDIA's KVTC (arXiv 2511.01815). Stored: packed codes of 0 to 8 bits per component and nothing else per
    token; bases, means, deviations and the Lloyd–Max tables belong to the model. ``bits`` is the mean over keys and
    values; values are harder than keys on small GQA models, so ``shift`` bits move from keys to values (default 1).
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

    def __post_init__(self) -> None:
        self.require(0 < self.bits <= MAX_BITS, f"bits={self.bits:g} must be in (0, {MAX_BITS}]")

    def apply(self, draft: Draft) -> None:
        """Basis, widths and codebook for both sides of every layer."""
        draft.store_keys_before_rope()
        most = min(self.bits / 2, MAX_BITS - self.bits)
        shift = max(-most, min(self.shift, most))
        for layer in draft:
            self._fit(layer, layer.keys, self.bits - shift, draft)
            self._fit(layer, layer.values, self.bits + shift, draft)

    def _fit(self, layer: LayerDraft, side: SideDraft, bits: float, draft: Draft) -> None:
        statistics = layer.calibrated
        (variances,), axes = principal_axes(statistics.covariance(side.moment), 1)
        widths = water_fill(variances, round(bits * len(variances)))
        kept = max(1, int((widths > 0).sum()))
        side.transform = orthonormal_transform(axes, statistics.mean(side.moment), kept, draft.dtype)
        deviation = variances[:kept].sqrt().clamp_min(1e-6).to(draft.geometry.device, draft.dtype)
        side.quantizer = CodebookQuantizer(tuple(widths[:kept].tolist()), deviation)
