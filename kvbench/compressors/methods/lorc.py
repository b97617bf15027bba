"""``lorc``: SVD of the weights, deeper layers compressed harder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.codecs.transforms.fitting import principal_basis
from kvbench.compressors.draft import Draft
from kvbench.compressors.low_rank import LowRank
from kvbench.compressors.rules import share


@dataclass(frozen=True)
class Lorc(LowRank):
    """LoRC: truncated SVD of W_k and W_v with progressive ranks, since errors of shallow layers grow on their way up.

    Based on Zhang et al. 2024, LoRC (arXiv 2410.03111). Layer l counts the condition numbers of W_k and W_v from l to
    the last layer; the logarithm of their product sets its rank linearly between the most (first layer) and the least
    (last layer). Stored: as for ``svd``. Differences: the paper names the most and the least; here ``rank`` is the mean
    and ``least`` the least as a share of it (more when the first layer is full), for equal bytes.
    """

    name = "lorc"
    paper = "arXiv 2410.03111"
    rules = (*LowRank.rules, share("least", "a share of the mean rank"))

    least: float = 0.5

    def apply(self, draft: Draft) -> None:
        """Condition numbers first, then ranks, then bases."""
        draft.store_keys_before_rope()
        sides = [(layer, side) for layer in draft for side in layer.sides]
        weights = [layer.calibrated.measured(f"{side.moment}_weight") for layer, side in sides]
        bases = [principal_basis(weight @ weight.T, 1) for weight in weights]
        conditions = torch.tensor([_log_condition(basis.values[0]) for basis in bases]).view(-1, 2).sum(1)
        shares = self._shares(conditions).repeat_interleave(2).tolist()
        for (layer, side), basis, fraction in zip(sides, bases, shares, strict=True):
            bias = layer.calibrated.measured(f"{side.moment}_bias")
            side.transform = basis.transform(bias, max(1, round(fraction * len(bias))), draft.basis_dtype)

    def _shares(self, conditions: Tensor) -> Tensor:
        """Rank fractions of all layers, their mean ``rank``, from log condition numbers (layers,)."""
        cumulative = conditions.flip(0).cumsum(0).flip(0)
        spread = cumulative.max() - cumulative.min()
        if spread == 0:
            return torch.full_like(conditions, self.rank)
        place = (cumulative - cumulative.min()) / spread
        least = self.least * self.rank
        middle = float(place.mean())
        most = least + (self.rank - least) / middle
        if most > 1:
            most, least = 1.0, (self.rank - middle) / (1 - middle)
        return least + (most - least) * place


def _log_condition(values: Tensor) -> float:
    """log σ_max / σ_min from eigenvalues σ² (n,) descending."""
    floor = values[0] * torch.finfo(values.dtype).eps
    return float((values[0] / values[-1].clamp_min(floor)).log() / 2)
