"""Codecs whose keys and values share a latent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kvbench.codecs.codec import Codec, Latents, Rotate, SideCodec
from kvbench.codecs.quantizers.base import Stored
from kvbench.codecs.stored import prefixed, side


@dataclass(frozen=True, eq=False)
class JointCodec(Codec):
    """One latent for keys and values: ``values`` encodes both side by side, ``keys`` stores nothing.

    ``values`` sees (batch, kv heads, tokens, head_dim + value_dim).
    """

    @property
    def sides(self) -> dict[str, SideCodec]:
        """The joint one."""
        return {"values": self.values}

    @cached_property
    def latents(self) -> dict[str, Latents]:
        """Both from the joint side: keys are the first channels of a head, values the others."""
        side, key_width = self.values, self.keys.head_dim
        return {
            "keys": Latents("values", side, 0, key_width),
            "values": Latents("values", side, key_width, side.head_dim - key_width),
        }

    def encode(self, keys: Tensor, values: Tensor) -> Stored:
        """The joint latent."""
        return prefixed("values", self.values.encode(torch.cat([keys, values], -1)))

    def decode(self, stored: Stored) -> tuple[Tensor, Tensor]:
        """Keys and values, split again."""
        both = self.values.decode(side(stored, "values"))
        return both[..., : self.keys.head_dim], both[..., self.keys.head_dim :]


@dataclass(frozen=True, eq=False)
class DecoupledCodec(JointCodec):
    """Multi-head latent attention: ``keys`` stores a slice that keeps its RoPE, the joint latent all that does not.

    The transform of ``values`` leaves the slice out. The slice is stored before RoPE, so that keys can be taken back.
    """

    decoupled = True

    @property
    def sides(self) -> dict[str, SideCodec]:
        """The slice and the joint latent."""
        return {"keys": self.keys, "values": self.values}

    @cached_property
    def latents(self) -> dict[str, Latents]:
        """Those of the joint side, and under ``rope`` the slice's."""
        return JointCodec(self.keys, self.values).latents | {"rope": Latents("keys", self.keys, 0, self.keys.head_dim)}

    def encode(self, keys: Tensor, values: Tensor) -> Stored:
        """The slice, and the latent of everything else."""
        return prefixed("keys", self.keys.encode(keys)) | super().encode(keys, values)

    def decode(self, stored: Stored) -> tuple[Tensor, Tensor]:
        """Whole keys before RoPE, and values."""
        nope, values = super().decode(stored)
        return self.keys.decode(side(stored, "keys")) + nope, values

    def tile(
        self, stored: Stored, rotate: Rotate | None, start: int, stop: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Keys (batch, kv heads, tokens, 2 · head_dim) that meet a query's rotated and unrotated halves, and values."""
        nope, values = super().decode(stored)
        rope = self.keys.decode(side(stored, "keys")).to(dtype)
        rope = rope if rotate is None else rotate(rope, start, stop)
        return torch.cat([rope, nope.to(dtype)], -1), values.to(dtype)
