"""The RoPE that the tokens of a forward pass have gone through, and what it would be at the positions after them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from kvbench.hooks.geometry import LayerGeometry
from kvbench.hooks.interception import rotate
from kvbench.hooks.rotations import Rotation


@dataclass(frozen=True, eq=False)
class AppliedRotation:
    """``rotation``, (1 or batch, tokens, dims) each, by which ``module`` has rotated the queries and keys of a pass."""

    module: nn.Module
    geometry: LayerGeometry
    rotation: Rotation

    def at(self, token: int) -> AppliedRotation:
        """That of one of the pass's tokens alone."""
        cos, sin = (part[:, token : token + 1] for part in self.rotation)
        return replace(self, rotation=(cos, sin))

    def mean_of_next(self, positions: int, dtype: torch.dtype) -> Rotation:
        """The mean rotation of the ``positions`` positions after the newest token, (1 or batch, 1, dims) each.

        Angles add up, so it is R(newest) times the mean of R(1) … R(positions): no position needs to be known by its
        number, and rows that count from their first real token come out right. Averaging shortens what turns fast.
        """
        cos, sin = (part[:, -1:].to(dtype) for part in self.rotation)
        ahead_cos, ahead_sin = (part.to(cos) for part in _mean_turn(self.geometry.angles, positions))
        return cos * ahead_cos - sin * ahead_sin, sin * ahead_cos + cos * ahead_sin

    def transposed_mean(self, states: Tensor, positions: int) -> Tensor:
        """R̄ᵀ of ``states`` (batch, heads, tokens, head_dim), where R̄ is :meth:`mean_of_next`.

        q·R̄ᵀk = R̄q·k: queries before RoPE meet such keys as they would meet rotated ones on average.
        """
        cos, sin = self.mean_of_next(positions, states.dtype)
        return rotate(self.module, states, (cos, -sin), self.geometry.rotary_dims)


@lru_cache(maxsize=64)
def _mean_turn(angles: tuple[float, ...], positions: int) -> Rotation:
    """Mean cosines and sines (dims,) of turning by ``angles`` once, twice, … ``positions`` times; fp64, on the CPU."""
    turned = torch.outer(torch.arange(1, positions + 1).double(), torch.tensor(angles, dtype=torch.float64))
    return turned.cos().mean(0), turned.sin().mean(0)
