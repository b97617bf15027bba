"""``ftc``: Fisher-weighted transform coding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvbench.codecs.quantizers.allocation import grain, water_fill
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.entropy import EntropyQuantizer, entropy_quantizers
from kvbench.codecs.quantizers.lloyd import MAX_BITS
from kvbench.codecs.transforms.fitting import Basis, weighted_basis
from kvbench.codecs.transforms.joint import joint_matrix
from kvbench.compressors.draft import Draft, LayerDraft, SideDraft
from kvbench.compressors.joint import join_sides, joint_moment
from kvbench.compressors.part import Part
from kvbench.errors import KvbenchError

Fitted = tuple[SideDraft, Basis, Tensor]
"""A side to fill in, its coordinates, and the point they are taken around."""


@dataclass(frozen=True)
class Ftc(Part):
    """Fisher-weighted transform coding: bits go where an error moves the model's predictions.

    Method. For a small error e in a layer's keys or values, KL(p ‖ p̂) ≈ ½ eᵀ F e with F the Fisher information of the
    logits, estimated in one backward pass per calibration window with labels drawn from the model.

    1. Coordinates per layer that whiten F and decorrelate the data (eigenvectors of F^½ C F^½), over all KV heads, and
       over keys and values together: both are linear in the same input, and what they share is stored once
       (``basis=split`` codes them apart, for comparison).
    2. In these coordinates a unit of squared error costs the same everywhere, so one global reverse water-filling over
       all layers hands out all bits; no split between layers, keys or values is tuned.
    3. Static Laplace Lloyd–Max levels per width, packed without padding. Nothing else is stored per token.
       ``coder=entropy`` quantizes with a trellis and codes the indices with rANS instead, every block of 32 tokens in a
       fixed number of bytes: less than half of the divergence at equal bits, for a slower encoder. It needs numba.

    What each part contributes is measured by suite ``ablation``, what calibration on another text costs by suite
    ``domains``: calibrate on what will be read, or on texts of several kinds.

    Keys are taken before RoPE, around their mean, and rotated when they are read; values around zero, which is what
    tokens that soak up attention carry. ``keys=after`` stores rotated keys instead, so that decode can absorb them, at
    a cost in quality; their basis is split. ``bits`` is the mean over all K and V elements of the body.
    """

    name = "ftc"
    family = "transform coding"
    roles = ("transform", "quantizer")
    needs_calibration = True
    published = ("ftc", "ftc:coder=entropy")

    bits: float
    basis: Literal["joint", "split"] = "joint"
    keys: Literal["before", "after"] = "before"
    coder: Literal["fixed", "entropy"] = "fixed"

    def __post_init__(self) -> None:
        self.require(0 < self.bits <= MAX_BITS, f"bits={self.bits:g} must be in (0, {MAX_BITS}]")

    def apply(self, draft: Draft) -> None:
        """Fisher coordinates everywhere, then one allocation over all of them."""
        if self.keys == "before":
            draft.store_keys_before_rope()
        fitted = [each for layer in draft for each in self._fit(layer)]
        variances = [basis.values[0] for _, basis, _ in fitted]
        quantizers: Sequence[CodebookQuantizer | EntropyQuantizer] = (
            entropy_quantizers(variances, self.bits) if self.coder == "entropy" else self._codebooks(variances, draft)
        )
        for (side, basis, centre), quantizer in zip(fitted, quantizers, strict=True):
            rank = len(quantizer.deviation)
            side.transform = basis.transform(centre, rank, draft.basis_dtype)
            side.quantizer = quantizer.scaled(basis.scale(rank))

    def _codebooks(self, variances: list[Tensor], draft: Draft) -> list[CodebookQuantizer]:
        counts = [len(side) for side in variances]
        widths = water_fill(torch.cat(variances), round(self.bits * sum(counts)), together=grain(min(counts))).split(
            counts
        )
        kept = [max(1, int((width > 0).sum())) for width in widths]
        deviations = [
            side[:rank].sqrt().clamp_min(1e-9).to(draft.geometry.device, draft.dtype)
            for side, rank in zip(variances, kept, strict=True)
        ]
        given = [tuple(width[:rank].tolist()) for width, rank in zip(widths, kept, strict=True)]
        return [CodebookQuantizer(width, deviation) for width, deviation in zip(given, deviations, strict=True)]

    def _fit(self, layer: LayerDraft) -> list[Fitted]:
        statistics = layer.calibrated
        if not statistics.has_fisher:
            raise KvbenchError("ftc needs statistics with Fisher information; calibrate with the Fisher pass")
        if self.basis == "joint" and self.keys == "before":
            moment, centre = joint_moment(layer)
            metric = joint_matrix(statistics.fisher("key"), statistics.fisher("value"), layer.geometry.kv_heads)
            return [(join_sides(layer), weighted_basis(moment, metric, 1), centre)]
        keys, values = layer.keys.moment, layer.values.moment
        centre = torch.zeros_like(statistics.mean(values))
        return [
            (
                layer.keys,
                weighted_basis(statistics.covariance(keys), statistics.fisher(keys), 1),
                statistics.mean(keys),
            ),
            (layer.values, weighted_basis(statistics.second(values), statistics.fisher(values), 1), centre),
        ]
