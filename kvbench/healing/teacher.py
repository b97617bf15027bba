"""What the uncompressed model predicts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.kernels.reference import wide

MOST_KEPT = 2 << 30
"""Bytes of predictions that are kept for the next time they are needed; the others are made anew."""


def log_probabilities(logits: Tensor) -> Tensor:
    """Of ``logits`` (tokens, vocabulary), in at least fp32."""
    return torch.log_softmax(logits.to(wide(logits.dtype)), -1)


@dataclass
class Teacher:
    """Log-probabilities (tokens, vocabulary) after the last ``scored`` tokens of a window, by the stock ``model``.

    ``dtype`` is what they are rounded to, kept or not; None: they are not rounded.
    """

    model: PreTrainedModel
    scored: int
    dtype: torch.dtype | None = None
    _kept: dict[bytes, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """Of the window ``ids`` (tokens,)."""
        key = ids.cpu().numpy().tobytes()
        if key in self._kept:
            return self._kept[key]
        predicted = log_probabilities(self.model(ids[None], use_cache=False, logits_to_keep=self.scored).logits[0])
        predicted = predicted.to(self.dtype or predicted.dtype)
        if (len(self._kept) + 1) * predicted.nbytes <= MOST_KEPT:
            self._kept[key] = predicted
        return predicted
