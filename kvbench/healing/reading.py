"""How a window of text is read in healing, and how far predictions are then from those of the uncompressed model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.attach import Plan
from kvbench.healing.bases import Bases
from kvbench.healing.cached_pass import cached_logits
from kvbench.healing.teacher import Teacher, log_probabilities
from kvbench.hooks.geometry import ModelGeometry
from kvbench.measure.divergence import divergence


@dataclass(frozen=True)
class Reading:
    """The first ``prompt`` tokens of a window are prefilled, and what is predicted after the ``scored`` last counts."""

    model: PreTrainedModel
    geometry: ModelGeometry
    prompt: int
    scored: int

    def predicted(self, plan: Plan, ids: Tensor) -> Tensor:
        """Log-probabilities (scored, vocabulary) in the window ``ids`` (tokens,), through the cache of ``plan``."""
        logits = cached_logits(self.model, self.geometry, plan, ids[None], self.prompt, self.scored)
        return log_probabilities(logits[0])

    @torch.no_grad()
    def divergences(self, bases: Bases, windows: Tensor, shares: tuple[float, ...]) -> tuple[float, ...]:
        """KL(uncompressed ‖ compressed) per token in nats on ``windows`` (count, tokens), for ``shares`` of the ranks.

        Of the bases as they are saved.
        """
        return tuple(self._divergence(bases.kept(share), windows) for share in shares)

    def _divergence(self, plan: Plan, windows: Tensor) -> float:
        tokens = [divergence(self._uncompressed(ids), self.predicted(plan, ids)) for ids in windows]
        return float(torch.cat(tokens).mean())

    @cached_property
    def _uncompressed(self) -> Teacher:
        return Teacher(self.model, self.scored)
