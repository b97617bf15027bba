"""How many components every layer and side gets.

A spectrum (groups, n), descending, is the error that keeping each component removes. Groups of a layer share one rank,
so a rank costs as many stored values as the layer has groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Allocation = Literal["fisher", "sensitivity", "energy", "uniform"]


def uniform_ranks(spectra: Sequence[Tensor], rank: float) -> list[int]:
    """``rank`` (0…1] of every width, at least 1."""
    return [max(1, round(rank * spectrum.shape[1])) for spectrum in spectra]


def rank_for_energy(spectrum: Tensor, energy: float) -> int:
    """The smallest rank whose components hold ``energy`` (0…1] of the total, the same for all groups."""
    mean = spectrum.mean(0)
    share = mean.cumsum(0) / mean.sum().clamp_min(torch.finfo(mean.dtype).tiny)
    return min(int((share < energy - 1e-12).sum()) + 1, len(mean))


def global_ranks(spectra: Sequence[Tensor], rank: float, weights: Sequence[float] | None = None) -> list[int]:
    """Ranks that store ``rank`` of all values and leave the least weighted error, each at least 1.

    The error is additive over components, so the best of all layers and sides win: one water level.
    ``weights`` make layers and sides comparable, such as their mean Fisher information.
    """
    weights = [1.0] * len(spectra) if weights is None else weights
    removed = [spectrum.mean(0).double() * weight for spectrum, weight in zip(spectra, weights, strict=True)]
    costs = torch.cat(
        [torch.full((len(values),), len(spectrum)) for values, spectrum in zip(removed, spectra, strict=True)]
    )
    owner = torch.cat([torch.full((len(values),), index) for index, values in enumerate(removed)])
    order = torch.cat(removed).argsort(descending=True, stable=True)
    spent = costs[order].cumsum(0)
    kept = order[spent <= round(rank * int(costs.sum()))]
    return [max(1, count) for count in torch.bincount(owner[kept], minlength=len(spectra)).tolist()]
