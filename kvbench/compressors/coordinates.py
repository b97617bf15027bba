"""Coordinates that a side is to be stored in, before and after its bits are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.entropy import EntropyQuantizer
from kvbench.codecs.quantizers.lloyd import laplace_levels
from kvbench.codecs.transforms.fitting import Basis
from kvbench.codecs.transforms.predictive import PredictiveBasis
from kvbench.compressors.draft import Draft, SideDraft


@dataclass(frozen=True)
class Coordinates:
    """``basis`` around ``centre`` (n,) for ``side``, which :meth:`use` fills in.

    ``refit`` fits a predictive basis anew, once it is known which share of the leading components' variances is told.
    """

    side: SideDraft
    basis: Basis | PredictiveBasis
    centre: Tensor
    refit: Callable[[Tensor], PredictiveBasis] | None = None

    @property
    def variances(self) -> Tensor:
        """(n,): the squared error that dropping a component costs."""
        return self.basis.variances

    def with_widths(self, widths: Tensor) -> Coordinates:
        """The same for components of ``widths`` (n,) bits: what is quantized coarsely tells less of the rest."""
        if self.refit is None:
            return self
        errors = torch.tensor([error for _, error in laplace_levels()], dtype=torch.float64)
        return replace(self, basis=self.refit(1 - errors[widths[: self.basis.parts[0]]]))

    def use_widths(self, widths: Tensor, draft: Draft) -> None:
        """Store the components that have any of their ``widths`` (n,) in bits, at least one of each kind."""
        kept = [part[: max(1, int((part > 0).sum()))] for part in widths.split(self.basis.parts)]
        basis = self.basis.leading(*map(len, kept))
        deviation = basis.variances.sqrt().clamp_min(1e-9).to(draft.geometry.device, draft.dtype)
        self._store(basis, CodebookQuantizer(tuple(torch.cat(kept).tolist()), deviation), draft)
        self.side.leading = len(kept[0]) if self.refit else 0

    def use_quantizer(self, quantizer: EntropyQuantizer, draft: Draft) -> None:
        """Store what ``quantizer`` takes."""
        assert isinstance(self.basis, Basis)
        self._store(self.basis.leading(quantizer.rank), quantizer, draft)

    def _store(self, basis: Basis, quantizer: CodebookQuantizer | EntropyQuantizer, draft: Draft) -> None:
        rank = len(basis.variances)
        self.side.transform = basis.transform(self.centre, rank, draft.basis_dtype)
        self.side.quantizer = quantizer.scaled(basis.scale(rank))
