"""The codec of one layer: a transform and a quantizer for keys, another pair for values.

A codec is a pure function pair over blocks of tokens. It owns model-level tensors (bases, codebooks) that every cache
shares; what it returns from :meth:`Codec.encode` is all that a cache keeps per token, and what it returns from
:meth:`Codec.fit` (nothing, for most) all that it keeps per row: bases that are fitted to the sequence itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvbench.codecs.frame import Bands, Frame
from kvbench.codecs.quantizers.base import Cost, Divisible, Quantizer, Stored
from kvbench.codecs.stored import prefixed, side
from kvbench.codecs.transforms.linear import LinearTransform
from kvbench.codecs.transforms.online import PromptBasis

Rotate = Callable[[Tensor, int, int], Tensor]
"""Rotate keys (batch, kv heads, tokens, head_dim) that sit at entries [start, stop) of the body."""


@dataclass(frozen=True, eq=False)
class SideCodec:
    """Keys or values of one layer: ``transform`` (None: the heads as they are), then ``quantizer``.

    With ``online`` the transform is fitted to every sequence by itself: :meth:`fit` and :meth:`bound` come first.

    Predictive coding, by a divisible quantizer: the first ``leading`` components are quantized first, and the others
    stand for what the quantized ones do not tell. Decoding is linear all the same: the decoder's rows of the leading
    components hold the prediction.
    """

    kv_heads: int
    head_dim: int
    transform: LinearTransform | None
    quantizer: Quantizer
    online: PromptBasis | None = None
    leading: int = 0

    @property
    def groups(self) -> int:
        """Head groups of the latents."""
        basis = self.online or self.transform
        return self.kv_heads if basis is None else basis.groups

    @property
    def rank(self) -> int:
        """Latent components per head group."""
        basis = self.online or self.transform
        return self.head_dim if basis is None else basis.rank

    def fit(self, states: Tensor, real: Tensor | None) -> Stored:
        """What a cache keeps per row for ``states``; see :meth:`Codec.fit`."""
        return {} if self.online is None else self.online.fit(states, real)

    def bound(self, fitted: Stored) -> SideCodec:
        """The side codec with the transform that ``fitted`` holds."""
        return self if self.online is None else replace(self, transform=self.online.transform(fitted), online=None)

    def encode(self, states: Tensor) -> Stored:
        """(batch, kv heads, tokens, head_dim) → stored tensors (batch, groups, entries, …)."""
        if self.transform is None:
            return self.quantizer.encode(states)
        latents = self._predicted(states) if self.leading else self.transform.forward(states)
        return self.quantizer.encode(latents)

    def _predicted(self, states: Tensor) -> Tensor:
        """The leading latents, and the others of what those, once quantized, do not tell of ``states``."""
        transform = self.transform
        assert transform is not None
        centred, (encoder, decoder) = transform.centred(states), transform.wide
        first = torch.matmul(centred, encoder[..., : self.leading])
        told = self._leading_quantizer.decode(self._leading_quantizer.encode(first)).to(first.dtype)
        rest = torch.matmul(centred - torch.matmul(told, decoder[:, : self.leading]), encoder[..., self.leading :])
        return torch.cat([first, rest], -1)

    @cached_property
    def _leading_quantizer(self) -> Quantizer:
        assert isinstance(self.quantizer, Divisible)
        return self.quantizer.first(self.leading)

    def decode(self, stored: Stored) -> Tensor:
        """Stored tensors → (batch, kv heads, tokens, head_dim)."""
        latents = self.quantizer.decode(stored)
        return latents if self.transform is None else self.transform.inverse(latents, self.kv_heads)

    def cost(self, dtype: torch.dtype) -> Cost:
        """Predicted bits per token, all heads together."""
        return self.quantizer.cost(self.groups, self.rank, dtype)

    def tensors(self) -> list[Tensor]:
        """Model-level tensors."""
        return self.quantizer.tensors() + ([] if self.transform is None else self.transform.tensors())

    def decoding_tensors(self) -> list[Tensor]:
        """Those that decoding, or attending in the latents, reads."""
        return self.quantizer.tensors() + (
            [] if self.transform is None else [self.transform.decoder, self.transform.mean]
        )


@dataclass(frozen=True, eq=False)
class Latents:
    """What keys, or values, are decoded from: ``width`` channels of every head from ``first`` on, out of the latents
    that ``side`` stores under ``name``. Its bases belong to the model.
    """

    name: str
    side: SideCodec
    first: int
    width: int

    @cached_property
    def decoder(self) -> Tensor | None:
        """(groups, rank, heads of a group, width), a view; None where the latents are the heads themselves."""
        return None if self.side.transform is None else self._heads(self.side.transform.decoder)

    @cached_property
    def mean(self) -> Tensor | None:
        """(groups, heads of a group, width), a view."""
        return None if self.side.transform is None else self._heads(self.side.transform.mean)

    @property
    def shifts(self) -> bool:
        """Whether the mean of the side is anything but zero."""
        return self.side.transform is not None and self.side.transform.shifts

    @property
    def dtype(self) -> torch.dtype | None:
        """What the basis is computed in; None without one."""
        return None if self.side.transform is None else self.side.transform.dtype

    def _heads(self, channels: Tensor) -> Tensor:
        heads = channels.unflatten(-1, (self.side.kv_heads // self.side.groups, self.side.head_dim))
        return heads.narrow(-1, self.first, self.width)


@dataclass(frozen=True, eq=False)
class Codec:
    """One layer's codec. ``keys_before_rope``: keys are stored unrotated; with ``bands``, relative to their block.

    Whoever encodes and decodes brings rotated keys into that frame and back
    (:class:`kvbench.cache.block_frame.BlockFrame`).
    """

    keys: SideCodec
    values: SideCodec
    keys_before_rope: bool = False
    bands: Bands | None = None
    decoupled: ClassVar[bool] = False
    """Whether part of a stored key is never rotated: queries then come as rotated and unrotated halves."""

    @property
    def sides(self) -> dict[str, SideCodec]:
        """The side codecs that store something, by name."""
        return {"keys": self.keys, "values": self.values}

    @property
    def block(self) -> int:
        """Tokens are encoded in multiples of this."""
        return math.lcm(*(side.quantizer.block for side in self.sides.values()))

    @cached_property
    def latents(self) -> dict[str, Latents]:
        """Where keys and values come from, by name."""
        sides = {"keys": self.keys, "values": self.values}
        return {name: Latents(name, side, 0, side.head_dim) for name, side in sides.items()}

    @property
    def absorbable(self) -> bool:
        """Whether keys and values have separate latents, in model-level bases that queries can be projected into."""
        return self.rebuildable and len(self.sides) == 2

    @property
    def rebuildable(self) -> bool:
        """Whether keys alone can be rebuilt and values be absorbed: bases belong to the model."""
        bases = [side.transform for side in self.sides.values() if side.transform is not None]
        online = any(side.online is not None for side in self.sides.values())
        return not self.decoupled and not online and all(basis.encoder.dim() == 3 for basis in bases)

    @property
    def frame(self) -> Frame:
        """The frame that keys are stored in."""
        if self.bands is not None:
            return "bands"
        return "before" if self.keys_before_rope else "after"

    @property
    def rotates(self) -> bool:
        """Whether stored keys are rotated when they are read, so that a cache must know their positions."""
        return self.frame != "after"

    @property
    def joins_heads(self) -> bool:
        """Whether a latent mixes several KV heads, which must then hold the same token."""
        return any(side.groups < side.kv_heads for side in self.sides.values())

    def fit(self, keys: Tensor, values: Tensor, real: Tensor | None = None) -> Stored:
        """What a cache keeps per row (batch, …) beside its tokens, fitted to the first tokens it encodes.

        ``real`` (batch, 1 or kv heads, tokens) is False for padding and sinks, which must not count.
        """
        states = {"keys": keys, "values": values}
        fitted = [prefixed(name, side.fit(states[name], real)) for name, side in self.sides.items()]
        return {name: tensor for stored in fitted for name, tensor in stored.items()}

    def bound(self, fitted: Stored) -> Codec:
        """The codec of the sequence that ``fitted`` came from."""
        if not fitted:
            return self
        keys, values = self.keys.bound(side(fitted, "keys")), self.values.bound(side(fitted, "values"))
        return replace(self, keys=keys, values=values)

    @property
    def row_bits(self) -> float:
        """Predicted bits per row, whatever its length: what :meth:`fit` returns."""
        return sum(side.online.bits for side in self.sides.values() if side.online is not None)

    def encode(self, keys: Tensor, values: Tensor) -> Stored:
        """``keys``, ``values`` (batch, kv heads, tokens, ·), tokens a multiple of ``block``, to one flat dict."""
        return prefixed("keys", self.keys.encode(keys)) | prefixed("values", self.values.encode(values))

    def decode(self, stored: Stored) -> tuple[Tensor, Tensor]:
        """Keys, in the frame they are stored in, and values, each (batch, kv heads, tokens, ·), in fp32 or fp64."""
        return self.keys.decode(side(stored, "keys")), self.values.decode(side(stored, "values"))

    def tile(
        self, stored: Stored, rotate: Rotate | None, start: int, stop: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the entries [start, stop) in ``stored``, as queries meet them."""
        keys, values = self.decode(stored)
        keys = keys.to(dtype)
        return (keys if rotate is None else rotate(keys, start, stop)), values.to(dtype)

    def cost(self, dtype: torch.dtype) -> Cost:
        """Predicted bits per token of keys and values together."""
        costs = [side.cost(dtype) for side in self.sides.values()]
        return Cost(sum(cost.payload for cost in costs), sum(cost.scales for cost in costs))

    def tensors(self) -> list[Tensor]:
        """Model-level tensors: bases, codebooks, static scales."""
        return [tensor for side in self.sides.values() for tensor in side.tensors()]

    def __deepcopy__(self, memo: dict[int, Any]) -> Codec:
        """A codec is shared: copying a cache must not copy the bases."""
        return self
