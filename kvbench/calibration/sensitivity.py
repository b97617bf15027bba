"""How much an error in one layer's keys or values costs, measured with everything else exact.

Fisher information is the slope at no error, over all tokens alike. This is a real error in a real cache, whose exact
tokens stay exact and whose later layers see the damage.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

_LEAST = 1e-12
"""Nats and squared errors below this are rounding."""


@dataclass(frozen=True)
class SideSensitivity:
    """One layer's keys or values compressed alone: ``kld`` in nats per token, and the ``error`` that caused it.

    ``error`` is the squared error of a token over all heads, on average.
    """

    kld: float
    error: float

    @property
    def weight(self) -> float:
        """Nats per unit of squared error."""
        return max(self.kld, _LEAST) / max(self.error, _LEAST)


@dataclass(frozen=True)
class Sensitivity:
    """All compressible layers; sides are named "key" and "value"."""

    sides: dict[tuple[int, str], SideSensitivity]

    def of(self, layer: int, moment: str) -> SideSensitivity:
        """That of the side whose statistics are called ``moment``: key, rotated_key or value."""
        return self.sides[layer, moment.removeprefix("rotated_")]

    def to_json(self) -> str:
        """One object per layer and side."""
        return json.dumps(
            [{"layer": layer, "side": side} | asdict(measured) for (layer, side), measured in self.sides.items()]
        )

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """The inverse of :meth:`to_json`. Raises ValueError, KeyError or TypeError for anything else."""
        rows = json.loads(text)
        return cls({(row["layer"], row["side"]): SideSensitivity(row["kld"], row["error"]) for row in rows})
