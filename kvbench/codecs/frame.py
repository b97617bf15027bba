"""In which frame a cache's body stores keys: after RoPE, before it, or in bands, relative to the start of their block.

The exact tokens around the body keep keys after RoPE whatever the frame (:mod:`kvbench.cache.block_frame`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvbench.errors import KvbenchError, UnsupportedModelError
from kvbench.hooks.geometry import LayerGeometry

Frame = Literal["after", "before", "bands"]

BLOCK = 128
"""Tokens that share a reference position."""

REACH = 1.7
"""Radians that a slow pair turns at most within a block."""


@dataclass(frozen=True)
class Bands:
    """Keys relative to the first token of their ``block`` of entries; dimensions ``fast`` of every head before RoPE.

    Slow dimensions are met in the latents, by queries taken there once a block. ``head_dim`` counts those of a key.
    """

    head_dim: int
    fast: tuple[int, ...]
    block: int

    @property
    def slow(self) -> tuple[int, ...]:
        """The dimensions that are stored relative to their block, ascending."""
        fast = set(self.fast)
        return tuple(dim for dim in range(self.head_dim) if dim not in fast)


def bands_of(layer: LayerGeometry, block: int = BLOCK, pairs: int | None = None) -> Bands | None:
    """The bands of a layer's keys: the ``pairs`` fastest ones before RoPE, or those fast against ``block`` tokens.

    None without RoPE, where every frame is the same.

    Raises:
        KvbenchError: more pairs than there are.
        UnsupportedModelError: it cannot be told which dimensions RoPE turns together.
    """
    if layer.rotary_dims == 0:
        return None
    if pairs is not None and pairs > layer.rotary_dims // 2:
        raise KvbenchError(f"pairs={pairs}, but RoPE of this model turns {layer.rotary_dims // 2} pairs of dimensions")
    if layer.turn is None or not layer.angles:
        raise UnsupportedModelError(
            f"layer {layer.layer}: RoPE of this model does not turn pairs of key dimensions, so fast and slow ones "
            "cannot be told apart; store keys before or after RoPE instead"
        )
    speeds, partners = [abs(angle) for angle in layer.angles], layer.turn.partners
    if pairs is None:
        fast = [dim for dim, speed in enumerate(speeds) if speed * block > REACH]
    else:
        order = sorted(range(len(speeds)), key=lambda dim: (-speeds[dim], min(dim, partners[dim])))
        fast = sorted(order[: 2 * pairs])
    return Bands(layer.head_dim, tuple(fast), block)
