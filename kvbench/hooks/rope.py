"""Which key dimensions RoPE turns together, and how fast: measured by calling the model's own RoPE on unit vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kvbench.hooks.interception import Rotation, rotate


@dataclass(frozen=True)
class Rope:
    """The rotation by o positions: y_i = x_i cos(o · a_i) + x_p(i) sin(o · a_i), up to a common factor (YaRN).

    ``partners`` p(i) and ``angles`` a_i, in radians a position, of the rotated dimensions of a head. Both dimensions
    of a pair have the same angle with opposite signs. Any convention (halves, neighbours) is of this form.
    """

    partners: tuple[int, ...]
    angles: tuple[float, ...]

    def fast_dims(self, block: int, reach: float) -> tuple[int, ...]:
        """Dimensions that turn by more than ``reach`` radians within ``block`` positions."""
        return tuple(dim for dim, angle in enumerate(self.angles) if abs(angle) * block > reach)

    def fastest(self, pairs: int) -> tuple[int, ...]:
        """The dimensions of the ``pairs`` fastest pairs, ascending."""
        order = sorted(range(len(self.angles)), key=lambda dim: (-abs(self.angles[dim]), min(dim, self.partners[dim])))
        return tuple(sorted(order[: 2 * pairs]))


def measure_rope(module: nn.Module, rotation: Rotation, rotary_dims: int) -> Rope | None:
    """The RoPE of an attention ``module`` from its ``rotation`` (1, 1, dims) of position 1.

    None if there is none, or if what the model calls RoPE does not turn pairs of dimensions.
    """
    if rotary_dims == 0:
        return None
    units = torch.eye(rotary_dims, dtype=torch.float64, device=rotation[0].device)[None, None]
    cos, sin = (part.double().expand(-1, rotary_dims, -1) for part in rotation)
    try:
        matrix = rotate(module, units, (cos, sin), rotary_dims)[0, 0].T
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return None  # a RoPE of another signature: what needs it says so
    return _pairs(matrix.cpu())


def _pairs(matrix: Tensor) -> Rope | None:
    """The pairs of the rotation ``matrix`` (dims, dims); None if rows hold anything beside a cosine and a sine."""
    cosines = matrix.diagonal()
    sines, partners = (matrix - cosines.diag()).abs().max(1)
    signed = matrix.gather(1, partners[:, None])[:, 0] * (sines > 0)
    partners = torch.where(sines > 0, partners, torch.arange(len(matrix)))
    rebuilt = cosines.diag().scatter_add(1, partners[:, None], signed[:, None])
    index = torch.arange(len(matrix))
    if not (torch.equal(rebuilt, matrix) and torch.equal(partners[partners], index)):
        return None
    angles = [math.atan2(sine, cosine) for sine, cosine in zip(signed.tolist(), cosines.tolist(), strict=True)]
    if any(angles[dim] + angles[partner] for dim, partner in enumerate(partners.tolist()) if dim != partner):
        return None
    return Rope(tuple(partners.tolist()), tuple(angles))
