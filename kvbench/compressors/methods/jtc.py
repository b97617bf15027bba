"""``jtc``: transform coding of keys and values together."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.joint import join_sides, joint_moment
from kvbench.compressors.part import Part
from kvbench.errors import KvbenchError
from kvbench.quantizers.allocation import water_fill
from kvbench.quantizers.codebook import CodebookQuantizer
from kvbench.quantizers.lloyd import MAX_BITS
from kvbench.transforms.fitting import Basis, weighted_basis
from kvbench.transforms.joint import joint_matrix


@dataclass(frozen=True)
class Jtc(Part):
    """Joint transform coding: ``ftc`` in coordinates that decorrelate keys from values as well.

    Keys before RoPE and values are linear in the same input. Coded apart, what they share is paid for twice; here one
    basis a layer whitens the Fisher information of both (no cross terms), diagonalises their joint second moment, and a
    single water-filling over the whole model gives each component its bits. Stored: packed codes of 0 to 8 bits per
    component, nothing else per token. ``bits`` is the mean over all K and V elements of the body.
    """

    name = "jtc"
    family = "transform coding"
    roles = ("transform", "quantizer")
    needs_calibration = True
    absorbs = "values"

    bits: float

    def __post_init__(self) -> None:
        self.require(0 < self.bits <= MAX_BITS, f"bits={self.bits:g} must be in (0, {MAX_BITS}]")

    def apply(self, draft: Draft) -> None:
        """Joint Fisher coordinates of every layer, then one allocation over all of them."""
        draft.store_keys_before_rope()
        fitted = [self._fit(layer) for layer in draft]
        variances = torch.cat([basis.values[0] for basis, _ in fitted])
        widths = water_fill(variances, round(self.bits * len(variances)))
        given = widths.split([basis.values.shape[1] for basis, _ in fitted])
        for layer, (basis, centre), width in zip(draft, fitted, given, strict=True):
            kept = max(1, int((width > 0).sum()))
            side = join_sides(layer)
            side.transform = basis.transform(centre, kept, draft.dtype)
            deviation = basis.values[0, :kept].sqrt().clamp_min(1e-9).to(draft.geometry.device, draft.dtype)
            side.quantizer = CodebookQuantizer(tuple(width[:kept].tolist()), deviation)

    def _fit(self, layer: LayerDraft) -> tuple[Basis, torch.Tensor]:
        statistics = layer.calibrated
        if not statistics.has_fisher:
            raise KvbenchError("jtc needs statistics with Fisher information; calibrate with the Fisher pass")
        moment, centre = joint_moment(layer)
        metric = joint_matrix(statistics.fisher("key"), statistics.fisher("value"), layer.geometry.kv_heads)
        return weighted_basis(moment, metric, 1), centre
