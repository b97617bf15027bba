"""The codec of multi-head latent attention: one latent for keys and values, and a slice of keys that keeps its RoPE."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.codec import Codec, Rotate, side
from kvbench.quantizers.base import Stored


@dataclass(frozen=True, eq=False)
class LatentCodec(Codec):
    """Keys are the sum of a rotated slice and a part that is never rotated, which shares its latent with the values.

    ``keys`` encodes the slice. ``values`` encodes keys and values side by side, (batch, kv heads, tokens, head_dim +
    value_dim); its transform leaves the slice out. The slice is stored unrotated too, so that keys can be taken back.
    """

    decoupled = True

    def encode(self, keys: Tensor, values: Tensor) -> Stored:
        """The slice, and the latent of everything else."""
        return super().encode(keys, torch.cat([keys, values], -1))

    def decode(self, stored: Stored) -> tuple[Tensor, Tensor]:
        """Whole keys before RoPE, and values."""
        turning, still, values = self._parts(stored)
        return turning + still, values

    def tile(
        self, stored: Stored, rotate: Rotate | None, start: int, stop: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Keys (batch, kv heads, tokens, 2 · head_dim) that meet a query's rotated and unrotated halves, and values."""
        turning, still, values = (part.to(dtype) for part in self._parts(stored))
        turning = turning if rotate is None else rotate(turning, start, stop)
        return torch.cat([turning, still], -1), values

    def _parts(self, stored: Stored) -> tuple[Tensor, Tensor, Tensor]:
        turning, both = self.keys.decode(side(stored, "keys")), self.values.decode(side(stored, "values"))
        return turning, both[..., : self.keys.head_dim], both[..., self.keys.head_dim :]
