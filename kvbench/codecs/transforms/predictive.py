"""Predictive coding of vectors: some dimensions first, the rest as what those do not tell.

Of jointly distributed x and y, x is coded in coordinates of its own, and y as y − ẑ W with ẑ the *quantized* latents of
x. At high rates that takes no more bits than one joint basis (the chain rule of differential entropy; Gersho & Gray
1992, chapter 13), and x can be rebuilt from its own latents alone. Decoding stays linear: W stands in the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.codecs.transforms.fitting import FLOOR, Basis, weighted_basis


@dataclass(frozen=True, eq=False)
class PredictiveBasis:
    """Coordinates of ``first`` and of ``rest``, indices into n dimensions, and the prediction (first, rest).

    ``first_basis`` are the coordinates of the first dimensions, ``residual`` those of what is left of the rest.
    """

    first: Tensor
    rest: Tensor
    first_basis: Basis
    residual: Basis
    prediction: Tensor

    @classmethod
    def fit(
        cls, moment: Tensor, metric: Tensor, first: Tensor, rest: Tensor, told: Tensor | None = None
    ) -> PredictiveBasis:
        """The best coordinates for ``moment`` and ``metric`` (n, n), as in :func:`weighted_basis`.

        ``told`` (first,): the share of every leading component's variance that is left once it is quantized; None: all.
        """
        leading = weighted_basis(moment[first][:, first], metric[first][:, first], 1)
        variances, cross = leading.values[0], leading.encoder[0].T @ moment[first][:, rest]
        prediction = cross / variances.clamp_min(FLOOR * float(variances.max()))[:, None]
        told = torch.ones_like(variances) if told is None else told
        left = moment[rest][:, rest] - prediction.T @ (told[:, None] * cross)
        return cls(first, rest, leading, weighted_basis(left, metric[rest][:, rest], 1), prediction)

    @property
    def variances(self) -> Tensor:
        """(n,): the error that keeping a component removes, per token."""
        return torch.cat([self.first_basis.variances, self.residual.variances])

    @property
    def parts(self) -> list[int]:
        """Components of either kind, each in the order of their variances."""
        return [len(self.first), len(self.rest)]

    def leading(self, leading: int, residual: int) -> Basis:
        """The basis of all n dimensions with so many components of both kinds, in that order."""
        size, count = len(self.first) + len(self.rest), leading + residual
        encoder, decoder = self.prediction.new_zeros(1, size, count), self.prediction.new_zeros(1, count, size)
        encoder[0][self.first, :leading] = self.first_basis.encoder[0, :, :leading]
        encoder[0][self.rest, leading:] = self.residual.encoder[0, :, :residual]
        decoder[0][:leading, self.first] = self.first_basis.decoder[0, :leading]
        decoder[0][:leading, self.rest] = self.prediction[:leading]
        decoder[0][leading:, self.rest] = self.residual.decoder[0, :residual]
        values = torch.cat([self.first_basis.values[0, :leading], self.residual.values[0, :residual]])
        return Basis(values[None], encoder, decoder)
