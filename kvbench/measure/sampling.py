"""How the next token is chosen: the likeliest, or drawn with noise that all arms share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Pick = Callable[[Tensor, list[int], int], Tensor]
"""The next tokens (rows,) of logits (rows, vocabulary), the rows' numbers and the step."""


def likeliest(logits: Tensor, rows: list[int], step: int) -> Tensor:
    """Greedy decoding."""
    return logits.argmax(-1)


@dataclass(frozen=True)
class SharedNoise:
    """Samples at ``temperature`` with noise that depends on ``seed``, row and step alone: two arms whose distributions
    agree draw the same tokens (Gumbel-max with common random numbers)."""

    temperature: float
    seed: int

    def __call__(self, logits: Tensor, rows: list[int], step: int) -> Tensor:
        """As :data:`Pick`."""
        noise = torch.stack([self._gumbel(logits.shape[-1], row, step) for row in rows]).to(logits.device)
        return (logits.float() / self.temperature + noise).argmax(-1)

    def _gumbel(self, vocabulary: int, row: int, step: int) -> Tensor:
        digest = hashlib.sha256(f"{self.seed} {row} {step}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return -torch.empty(vocabulary).exponential_(generator=generator).log()
