"""``ftc``: Fisher-weighted transform coding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from kvbench.codecs.frame import BLOCK, Frame
from kvbench.codecs.quantizers.allocation import grain, water_fill
from kvbench.codecs.quantizers.entropy import entropy_quantizers
from kvbench.codecs.quantizers.lloyd import MAX_BITS
from kvbench.codecs.transforms.fitting import weighted_basis
from kvbench.codecs.transforms.joint import joint_matrix
from kvbench.codecs.transforms.predictive import PredictiveBasis
from kvbench.compressors.coordinates import Coordinates
from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.joint import band_index, join_sides, joint_moment
from kvbench.compressors.part import Part
from kvbench.compressors.rules import Bounds, Multiple, Needs, at_least
from kvbench.errors import KvbenchError

_PREDICTIVE = "basis=predictive is for frame=bands and coder=fixed; use basis=joint"


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

    Keys are taken around their mean, values around zero, which is what tokens that soak up attention carry. ``frame``
    says how keys are stored. Those ``before`` RoPE compress best and are rebuilt and rotated whole when they are read.
    In ``bands`` (:class:`kvbench.codecs.frame.Bands`) they are stored relative to the first of ``rope_block`` tokens,
    where only the fastest ``pairs`` of RoPE (default: those that turn by more than 1.7 radians) are kept before RoPE
    and rebuilt, while queries take the others in as latents. There ``basis=predictive``, the default, codes the fast
    pairs first and the rest as what those do not tell (:mod:`kvbench.codecs.transforms.predictive`), so that little has
    to be rebuilt; ``joint`` compresses a little better and rebuilds from the whole latent. Keys ``after`` RoPE are
    absorbed whole, at a cost in quality; their basis is split. ``bits`` is the mean over all K and V elements of the
    body.
    """

    name = "ftc"
    family = "transform coding"
    roles = ("transform", "quantizer")
    needs_calibration = True
    published = ("ftc", "ftc:frame=bands", "ftc:coder=entropy")
    rules = (
        Bounds("bits", 0, MAX_BITS, above=True),
        at_least("rope_block", 8, "tokens"),
        Multiple("rope_block", of=8),
        at_least("pairs", 0),
        Needs("pairs", (None,), "frame", "bands", "pairs and rope_block belong to frame=bands"),
        Needs("rope_block", (BLOCK,), "frame", "bands", "pairs and rope_block belong to frame=bands"),
        Needs("basis", (None, "joint", "split"), "frame", "bands", _PREDICTIVE),
        Needs("basis", (None, "joint", "split"), "coder", "fixed", _PREDICTIVE),
    )

    bits: float
    basis: Literal["joint", "predictive", "split"] | None = None
    frame: Frame = "before"
    rope_block: int = BLOCK
    pairs: int | None = None
    coder: Literal["fixed", "entropy"] = "fixed"

    def apply(self, draft: Draft) -> None:
        """Fisher coordinates everywhere, then one allocation over all of them."""
        draft.store_keys(self.frame, self.rope_block, self.pairs)
        fitted = [each for layer in draft for each in self._fit(layer)]
        if self.coder == "entropy":
            self._code_entropy(fitted, draft)
        else:
            self._code_fixed(fitted, draft)

    @property
    def _predictive(self) -> bool:
        return self.basis == "predictive" or (self.basis is None and self.frame == "bands" and self.coder == "fixed")

    def _code_entropy(self, fitted: list[Coordinates], draft: Draft) -> None:
        quantizers = entropy_quantizers([each.variances for each in fitted], self.bits)
        for each, quantizer in zip(fitted, quantizers, strict=True):
            each.use_quantizer(quantizer, draft)

    def _code_fixed(self, fitted: list[Coordinates], draft: Draft) -> None:
        widths = self._widths(fitted)
        if any(each.refit for each in fitted):
            fitted = [each.with_widths(bits) for each, bits in zip(fitted, widths, strict=True)]
            widths = self._widths(fitted)
        for each, bits in zip(fitted, widths, strict=True):
            each.use_widths(bits, draft)

    def _widths(self, fitted: list[Coordinates]) -> list[Tensor]:
        """Bits of every component of every side."""
        counts = [len(each.variances) for each in fitted]
        variances, bits = torch.cat([each.variances for each in fitted]), round(self.bits * sum(counts))
        return list(water_fill(variances, bits, together=grain(min(counts))).split(counts))

    def _fit(self, layer: LayerDraft) -> list[Coordinates]:
        statistics = layer.calibrated
        if not statistics.has_fisher:
            raise KvbenchError("ftc needs statistics with Fisher information; calibrate with the Fisher pass")
        if self.basis != "split" and self.frame != "after":
            moment, centre = joint_moment(layer)
            metric = joint_matrix(statistics.fisher("key"), statistics.fisher("value"), layer.geometry.kv_heads)
            if self._predictive and layer.bands is not None and layer.bands.fast:
                refit = partial(PredictiveBasis.fit, moment, metric, *band_index(layer))
                return [Coordinates(join_sides(layer), refit(), centre, refit)]
            return [Coordinates(join_sides(layer), weighted_basis(moment, metric, 1), centre)]
        keys, values = layer.keys.moment, layer.values.moment
        key_basis = weighted_basis(statistics.covariance(keys), statistics.fisher(keys), 1)
        value_basis = weighted_basis(statistics.second(values), statistics.fisher(values), 1)
        return [
            Coordinates(layer.keys, key_basis, statistics.mean(keys)),
            Coordinates(layer.values, value_basis, torch.zeros_like(statistics.mean(values))),
        ]
