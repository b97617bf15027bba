"""``mla``: one latent for keys and values, and a few dimensions that keep their rotation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.codecs.joint import DecoupledCodec
from kvbench.codecs.transforms.fitting import Basis, weighted_basis
from kvbench.codecs.transforms.joint import balanced, joint_matrix
from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.joint import join_sides, joint_moment
from kvbench.compressors.part import Part
from kvbench.compressors.rope_slice import Choice, rope_bases
from kvbench.compressors.rules import Multiple, ShareOrCount, at_least
from kvbench.errors import UnsupportedModelError


@dataclass(frozen=True)
class Mla(Part):
    """Multi-head latent attention made out of a trained model, without the tuning that would heal it.

    After TransMLA (Meng et al. 2025, arXiv 2502.07864) and MHA2MLA (Ji et al. 2025, arXiv 2502.14837). Stored: the
    strongest ``rope_dims`` dimensions of the keys, mixed across heads within each frequency so that they can still be
    rotated (RoRoPE), and ``latent`` dimensions (up to 1: a share of all) of one joint PCA of values and what is left of
    the keys, keys scaled to the values' norm first. **What is left of the keys loses its RoPE, in the query too: the
    compressed tokens are attended by another function than the model was trained with.** TransMLA itself reports
    perplexity 9.75 → 16.14 on Llama-3.2-1B at 56 % of the cache before tuning. Differences: sinks and the recent window
    keep exact keys with RoPE, adjacent frequencies are not folded, and the slice takes what contributes most to scores,
    counting how far RoPE turns it, which loses the least (:mod:`kvbench.compressors.rope_slice`). Other choices:
    ``shared``: the same frequencies in all layers, so that one table of RoPE serves the model, as `kvbench convert`
    needs it; ``even``: every frequency alike, as TransMLA has it; ``energy``: what is largest.
    """

    name = "mla"
    family = "low rank"
    roles = ("transform",)
    paper = "arXiv 2502.07864"
    needs_calibration = True
    published = ("mla:rope_dims=64+hadamard+int:bits=4",)
    rules = (ShareOrCount("latent", "dimensions"), at_least("rope_dims", 2), Multiple("rope_dims"))

    latent: float
    rope_dims: int
    choice: Choice = "contribution"

    def apply(self, draft: Draft) -> None:
        """The RoPE part first, then the joint latent of the rest."""
        draft.store_keys_before_rope()
        layers = [*draft]
        for layer in layers:
            self._check(layer)
        for layer, rope_basis in zip(layers, rope_bases(layers, self.choice, self.rope_dims), strict=True):
            layer.keys.transform = rope_basis.transform(
                torch.zeros(len(rope_basis.encoder[0])), self.rope_dims, draft.basis_dtype
            )
            basis, centre = self._joint(layer, rope_basis.encoder[0, :, : self.rope_dims])
            join_sides(layer, DecoupledCodec).transform = basis.transform(
                centre, self._latent(layer), draft.basis_dtype
            )

    def _check(self, layer: LayerDraft) -> None:
        geometry = layer.geometry
        if geometry.rotary_dims == 0:
            raise UnsupportedModelError("mla: this model has no RoPE to decouple; use pca")
        rotary, width = geometry.kv_heads * geometry.rotary_dims, geometry.elements_per_token
        self.require(
            self.rope_dims <= rotary, f"rope_dims={self.rope_dims}, but this model rotates {rotary} dimensions"
        )
        self.require(self.latent <= width, f"latent={self.latent:g}, but keys and values have {width} dimensions")

    def _latent(self, layer: LayerDraft) -> int:
        width = layer.geometry.elements_per_token
        return max(1, round(self.latent * width)) if self.latent <= 1 else int(self.latent)

    def _joint(self, layer: LayerDraft, rope: Tensor) -> tuple[Basis, Tensor]:
        """Basis of [keys | values] of all heads without the key slice ``rope`` (K, rope_dims), and its mean."""
        heads, values = layer.geometry.kv_heads, layer.calibrated.second("value")
        nope = torch.eye(len(rope), dtype=torch.float64) - rope @ rope.T
        moment, centre = joint_moment(layer, nope)
        metric = balanced(nope @ layer.calibrated.covariance("key") @ nope, values, heads)
        basis = weighted_basis(moment, metric, 1)
        without_rope = joint_matrix(nope, torch.eye(len(values), dtype=nope.dtype), heads)
        return Basis(basis.values, without_rope @ basis.encoder, basis.decoder), centre
