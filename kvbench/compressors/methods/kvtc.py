"""``kvtc``: transform coding, PCA latents with mixed bits by reverse water-filling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvbench.codecs.frame import Frame
from kvbench.codecs.quantizers.allocation import grain, water_fill
from kvbench.codecs.quantizers.base import Quantizer
from kvbench.codecs.quantizers.block_allocation import block_runs
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.entropy import EntropyQuantizer, entropy_quantizers
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.codecs.quantizers.lloyd import MAX_BITS
from kvbench.codecs.quantizers.sections import Sections
from kvbench.codecs.transforms.fitting import Basis, principal_basis
from kvbench.codecs.transforms.ranks import Allocation
from kvbench.compressors.allocation import side_weights
from kvbench.compressors.draft import Draft, LayerDraft, SideDraft
from kvbench.compressors.part import Part
from kvbench.compressors.rules import Bounds, Needs, at_least
from kvbench.compressors.shared import layer_groups, share_latents


@dataclass(frozen=True)
class _Side:
    """Keys or values of a group of layers that share a basis."""

    members: list[SideDraft]
    basis: Basis
    mean: Tensor


@dataclass(frozen=True)
class Kvtc(Part):
    """KV transform coding: PCA of keys (before RoPE) and values over heads, then as many bits per component as pay.

    Based on NVIDIA's KVTC (arXiv 2511.01815). Stored: codes of the components and nothing else per token; bases, means
    and deviations belong to the model. ``bits`` is the mean over keys and values. ``allocate`` gives them out:
    ``uniform`` to every basis alike, ``shift`` bits of them moved from keys to values, which are harder on small GQA
    models (default 1); ``sensitivity`` by one water level over the whole model, errors weighted by the measured KLD of
    each layer's keys and values; ``fisher`` by mean Fisher information instead; ``energy`` unweighted. ``coder=fixed``
    packs 0 to 8 bits of Lloyd–Max levels, which kernels can read. ``coder=blocks`` is the paper's: integers with a
    16-bit scale and zero per token and run of components, runs and widths by its dynamic program, which may drop
    components. ``coder=entropy`` codes a trellis of uniform steps with rANS (see ``ftc``), in place of the DEFLATE that
    the paper puts behind its integers. ``layers`` adjacent layers share one basis; 0 is the paper's way, one basis for
    the keys of the whole model and one for the values. ``recent=128`` is the paper's window. Other frames of the keys
    (see ``ftc``) are not the paper's.

    Differences: a basis per layer by default, since a token of several layers is decoded whole for each of them;
    integers and entropy coding are not combined: an entropy-coded block of 32 tokens has one step instead of scales.
    """

    name = "kvtc"
    family = "transform coding"
    roles = ("transform", "quantizer")
    paper = "arXiv 2511.01815"
    needs_calibration = True
    published = ("kvtc:coder=entropy",)
    rules = (
        Bounds("bits", 0, MAX_BITS, above=True),
        at_least("layers", 0, "(0: all of them)"),
        Needs("layers", (1,), "frame", "before", "a basis across layers is one of keys before RoPE; use layers=1"),
    )

    bits: float
    shift: float = 1.0
    allocate: Allocation = "uniform"
    coder: Literal["fixed", "blocks", "entropy"] = "fixed"
    layers: int = 1
    frame: Frame = "before"

    def apply(self, draft: Draft) -> None:
        """Coordinates of both sides of every group of layers, then quantizers, all of them by one rule."""
        draft.store_keys(self.frame)
        groups = layer_groups(draft, self.layers)
        self.require(
            all(layer.selector is None for layer in draft) or all(len(group) == 1 for group in groups),
            "each layer of a group would evict other tokens, and they share one latent; leave the selector out",
        )
        sides = self._fit(draft, groups)
        quantizers = self._quantizers([side.basis.values[0] for side in sides], draft)
        for side, (rank, quantizer) in zip(sides, quantizers, strict=True):
            transform = side.basis.transform(side.mean, rank, draft.basis_dtype).to(draft.geometry.device)
            if isinstance(quantizer, CodebookQuantizer | EntropyQuantizer):  # scales per token follow by themselves
                quantizer = quantizer.scaled(side.basis.scale(rank))
            for member in side.members:  # moved once: members share it
                member.transform, member.quantizer = transform, quantizer
        for group in groups:
            share_latents(group)

    def _fit(self, draft: Draft, groups: Sequence[Sequence[LayerDraft]]) -> list[_Side]:
        """Keys and values of every group, in coordinates where a unit of squared error costs the same everywhere."""
        names = tuple(tuple(layer.geometry.layer for layer in group) for group in groups)
        across = draft.calibrated.across(names) if any(len(group) > 1 for group in groups) else None
        how = "energy" if self.allocate == "uniform" else self.allocate
        sides = []
        for group, name in zip(groups, names, strict=True):
            for place in (0, 1):
                members = [layer.sides[place] for layer in group]
                if across is None:
                    covariance = group[0].calibrated.covariance(members[0].moment)
                else:
                    covariance = (across.keys, across.values)[place][name]
                means = [layer.calibrated.mean(side.moment) for layer, side in zip(group, members, strict=True)]
                weights = side_weights(how, draft, list(zip(group, members, strict=True)))
                scales = [torch.full_like(mean, weight**0.5) for mean, weight in zip(means, weights, strict=True)]
                sides.append(_Side(members, _weighted(covariance, torch.cat(scales)), torch.cat(means)))
        return sides

    def _quantizers(self, variances: list[Tensor], draft: Draft) -> list[tuple[int, Quantizer]]:
        """The components that every side keeps, and their quantizer."""
        if self.coder == "entropy":
            shared = self.allocate != "uniform"
            coded = entropy_quantizers(variances, self.bits) if shared else self._entropy_each(variances)
            return [(len(quantizer.deviation), quantizer) for quantizer in coded]
        widths = self._widths(variances)
        if self.coder == "blocks":
            return [_blocks(variance, int(width.sum())) for variance, width in zip(variances, widths, strict=True)]
        return [_codebook(variance, width, draft) for variance, width in zip(variances, widths, strict=True)]

    def _entropy_each(self, variances: list[Tensor]) -> list[EntropyQuantizer]:
        pairs = zip(variances, self._shifted(len(variances)), strict=True)
        return [entropy_quantizers([variance], bits)[0] for variance, bits in pairs]

    def _widths(self, variances: list[Tensor]) -> list[Tensor]:
        """Bits of every component of every side."""
        counts = [len(variance) for variance in variances]
        if self.allocate == "uniform":
            pairs = zip(variances, self._shifted(len(variances)), strict=True)
            return [
                water_fill(variance, round(bits * len(variance)), together=grain(len(variance)))
                for variance, bits in pairs
            ]
        together = grain(min(counts))
        return list(water_fill(torch.cat(variances), round(self.bits * sum(counts)), together=together).split(counts))

    def _shifted(self, sides: int) -> list[float]:
        """Bits of each of ``sides``, keys and values in turn: ``shift`` of them moved from keys to values."""
        most = min(self.bits / 2, MAX_BITS - self.bits)
        shift = max(-most, min(self.shift, most))
        return [self.bits - shift, self.bits + shift] * (sides // 2)


def _weighted(covariance: Tensor, scale: Tensor) -> Basis:
    """Principal axes of channels multiplied by ``scale`` (channels,), encoder and decoder for channels as they are."""
    basis = principal_basis(scale[:, None] * covariance * scale, 1)
    return Basis(basis.values, scale[:, None] * basis.encoder, basis.decoder / scale)


def _codebook(variances: Tensor, widths: Tensor, draft: Draft) -> tuple[int, Quantizer]:
    """Levels for the components that get any bits, at least one."""
    kept = max(1, int((widths > 0).sum()))
    deviation = variances[:kept].sqrt().clamp_min(1e-9).to(draft.geometry.device, draft.dtype)
    return kept, CodebookQuantizer(tuple(widths[:kept].tolist()), deviation)


def _blocks(variances: Tensor, bits: int) -> tuple[int, Quantizer]:
    """Integers with a scale and zero per token and run of components, ``bits`` per token with them."""
    runs = block_runs(variances.tolist(), bits)
    sections = tuple((components, IntegerQuantizer(width, components)) for components, width in runs)
    return sum(components for components, _ in runs), Sections(sections)
