"""Several quantizers side by side: each has a run of the components."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.codecs.quantizers.base import Cost, Quantizer, Stored


@dataclass(frozen=True)
class Sections:
    """``runs`` of (components, quantizer), in the order of the latents; the components add up to the rank."""

    runs: tuple[tuple[int, Quantizer], ...]

    @property
    def block(self) -> int:
        """Whole blocks of every quantizer."""
        return math.lcm(*(quantizer.block for _, quantizer in self.runs))

    def encode(self, latents: Tensor) -> Stored:
        """Every run's stored tensors, named by the run's place."""
        parts = latents.split([count for count, _ in self.runs], -1)
        return {
            f"{place}.{name}": tensor
            for place, (part, (_, quantizer)) in enumerate(zip(parts, self.runs, strict=True))
            for name, tensor in quantizer.encode(part).items()
        }

    def decode(self, stored: Stored) -> Tensor:
        """The runs' latents side by side."""
        parts: list[Stored] = [{} for _ in self.runs]
        for key, tensor in stored.items():
            place, _, name = key.partition(".")
            parts[int(place)][name] = tensor
        return torch.cat([quantizer.decode(part) for part, (_, quantizer) in zip(parts, self.runs, strict=True)], -1)

    def cost(self, groups: int, rank: int, dtype: torch.dtype) -> Cost:
        """The sum over the runs."""
        costs = [quantizer.cost(groups, count, dtype) for count, quantizer in self.runs]
        return Cost(sum(cost.payload for cost in costs), sum(cost.scales for cost in costs))

    def tensors(self) -> list[Tensor]:
        """Those of every run."""
        return [tensor for _, quantizer in self.runs for tensor in quantizer.tensors()]
