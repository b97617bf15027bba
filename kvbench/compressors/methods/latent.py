"""``latent``: one joint latent of keys and values, rotation intact."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.codecs.frame import Frame
from kvbench.codecs.transforms.fitting import weighted_basis
from kvbench.codecs.transforms.joint import balanced
from kvbench.compressors.draft import Draft
from kvbench.compressors.joint import join_sides, joint_moment
from kvbench.compressors.low_rank import LowRank


@dataclass(frozen=True)
class Latent(LowRank):
    """The latent of multi-head latent attention for a model that was not trained with it: joint PCA of keys and values.

    Keys before RoPE and values are linear in the same input, so a basis for both at once needs far fewer components
    than one for each. Stored: ``rank`` of the K + V dimensions of all heads, keys scaled to the values' energy as in
    TransMLA (Meng et al. 2025, arXiv 2502.07864). Unlike ``mla`` nothing is decoupled: keys are rebuilt and rotated
    when they are read, so the model's function stays and only the truncation errs.
    """

    name = "latent"
    paper = "arXiv 2502.07864"
    published = ("latent+hadamard+int:bits=4", "latent+hadamard+int:bits=3")

    frame: Frame = "before"

    def apply(self, draft: Draft) -> None:
        """One basis a layer."""
        draft.store_keys(self.frame)
        for layer in draft:
            statistics = layer.calibrated
            moment, centre = joint_moment(layer)
            metric = balanced(statistics.covariance("key"), statistics.second("value"), layer.geometry.kv_heads)
            basis = weighted_basis(moment, metric, 1)
            join_sides(layer).transform = basis.transform(centre, self.components(len(moment)), draft.basis_dtype)
