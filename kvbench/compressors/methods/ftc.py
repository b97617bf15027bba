"""``ftc``: Fisher-weighted transform coding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part
from kvbench.errors import KvbenchError
from kvbench.quantizers.allocation import water_fill
from kvbench.quantizers.codebook import CodebookQuantizer
from kvbench.quantizers.lloyd import MAX_BITS
from kvbench.transforms.fitting import weighted_basis


@dataclass(frozen=True)
class Ftc(Part):
    """Fisher-weighted transform coding: bits go where an error moves the model's predictions.

    Method. For a small error e in a layer's keys or values, KL(p ‖ p̂) ≈ ½ eᵀ F e with F the Fisher information of the
    logits, estimated in one backward pass per calibration window with labels drawn from the model.

    1. Joint-heads coordinates per layer and side that whiten F and decorrelate the data (eigenvectors of F^½ C F^½).
    2. In these coordinates a unit of squared error costs the same in every layer, in keys and in values, so one global
       reverse water-filling hands out all bits; no split between layers or sides is tuned.
    3. Static Laplace Lloyd–Max levels per width, packed without padding. Nothing else is stored per token.

    Keys are taken before RoPE and rotated when they are read (``keys=after`` stores rotated keys, so that decode can
    absorb them, at a cost in quality). ``bits`` is the mean over all K and V elements of the body.
    """

    name = "ftc"
    family = "transform coding"
    roles = ("transform", "quantizer")
    needs_calibration = True
    absorbs = "values; keys with keys=after"

    bits: float
    keys: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        self.require(0 < self.bits <= MAX_BITS, f"bits={self.bits:g} must be in (0, {MAX_BITS}]")

    def apply(self, draft: Draft) -> None:
        """Fisher coordinates everywhere, then one allocation over all of them."""
        if self.keys == "before":
            draft.store_keys_before_rope()
        sides = [(layer, side) for layer in draft for side in layer.sides]
        if not all(layer.calibrated.has_fisher for layer, _ in sides):
            raise KvbenchError("ftc needs statistics with Fisher information; calibrate with the Fisher pass")
        bases = [
            weighted_basis(layer.calibrated.covariance(side.moment), layer.calibrated.fisher(side.moment), 1)
            for layer, side in sides
        ]
        variances = torch.cat([basis.values[0] for basis in bases])
        widths = water_fill(variances, round(self.bits * len(variances)))
        given = widths.split([basis.values.shape[1] for basis in bases])
        for (layer, side), basis, width in zip(sides, bases, given, strict=True):
            kept = max(1, int((width > 0).sum()))
            side.transform = basis.transform(layer.calibrated.mean(side.moment), kept, draft.dtype)
            deviation = basis.values[0, :kept].sqrt().clamp_min(1e-9).to(draft.geometry.device, draft.dtype)
            side.quantizer = CodebookQuantizer(tuple(width[:kept].tolist()), deviation)
