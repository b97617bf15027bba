"""Adjacent layers whose compressed tokens are stored once: one latent per token for a whole group of layers.

A token can be encoded only when every layer of the group has seen it. So the group's last layer encodes for all of
them, and until then each keeps its exact tail: a prefill holds the exact prompts of one group at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.buffers import AXIS
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.spans import Spans
from kvbench.codecs.codec import Codec, SideCodec
from kvbench.codecs.quantizers.base import Cost, Stored
from kvbench.errors import KvbenchError
from kvbench.selectors.base import Observed


@dataclass(frozen=True, eq=False)
class MemberCodec(Codec):
    """The codec of the layer ``members[place]``; all members store one latent, by bases over all of their heads.

    Bound to a sequence it decodes its own layer. What it encodes and is fitted to are the heads of all members, one
    layer after the other: see ``whole``. A transform that belongs to the model is over all of them, too.
    """

    members: tuple[int, ...] = ()
    place: int = 0
    decoupled: ClassVar[bool] = False

    @property
    def whole(self) -> Codec:
        """The codec of all members, as if their heads belonged to one layer."""
        keys, values = (replace(side, kv_heads=side.kv_heads * len(self.members)) for side in (self.keys, self.values))
        return Codec(keys, values, self.keys_before_rope, self.bands)

    def fit(self, keys: Tensor, values: Tensor, real: Tensor | None = None) -> Stored:
        """Bases over the heads of all members: ``keys`` and ``values`` are theirs."""
        return self.whole.fit(keys, values, real)

    def bound(self, fitted: Stored) -> Codec:
        """This layer's rows of the bases."""
        return self._in_model if not fitted else self._bound(fitted)

    @cached_property
    def _in_model(self) -> Codec:
        """The same codec each time, so that what is worked out for its bases is known again."""
        return self._bound({})

    def _bound(self, fitted: Stored) -> Codec:
        member_rows = {}
        for name, tensor in fitted.items():  # the channels of all members are the third axis of basis and centre
            width = tensor.shape[2] // len(self.members)
            member_rows[name] = tensor.narrow(2, self.place * width, width)
        bound = super().bound(member_rows)
        return replace(bound, keys=self._member(bound.keys), values=self._member(bound.values))

    def _member(self, side: SideCodec) -> SideCodec:
        """``side`` with this layer's rows of a transform over all members."""
        width = side.kv_heads * side.head_dim
        if side.transform is None or side.transform.mean.shape[-1] == width:
            return side
        return replace(side, transform=side.transform.channels(self.place * width, width))

    def cost(self, dtype: torch.dtype) -> Cost:
        """This layer's share of the group's."""
        cost = super().cost(dtype)
        return Cost(cost.payload / len(self.members), cost.scales / len(self.members))

    @property
    def row_bits(self) -> float:
        """This layer's share of the group's."""
        return super().row_bits / len(self.members)


class SharedLayer(CompressedLayer):
    """A layer of ``group``, to which it adds itself; the members before it have lower layer indices and run earlier.

    Their common body belongs to the last member: whatever is done to all layers in turn reaches it last.
    """

    def __init__(self, codec: MemberCodec, spans: Spans, group: list[SharedLayer]) -> None:
        super().__init__(codec, spans)
        self.whole = codec.whole
        self.group = group
        self.most_at_once = max(1, self.spans.recent)  # what leaves the window must have been seen by all members
        if group:
            self.body, group[-1].owns_body = group[-1].body, False
        group.append(self)

    def _settle(self, observed: Observed, seen: int | None = None) -> None:
        """The last member encodes for all, and all drop their exact copies."""
        if self.owns_body:
            boundary = self.spans.boundary(self.seen, self.first_max)
            self._encode_group(boundary)
            for member in self.group:
                member._catch_up(boundary)

    def round_prompt(self) -> None:
        """Members keep their prompt as it was computed until the last one has encoded it for all."""
        if self.owns_body:
            for member in self.group:
                CompressedLayer.round_prompt(member)

    def _settle_as_decoded(self, observed: Observed) -> None:
        """The first member encodes for all what has left the window by the end of the block, step by step.

        Raises:
            KvbenchError: some of it is new to the members to come.
        """
        first, new = self.group[0], observed.query.shape[AXIS]
        past = self.seen - new
        if self is first:
            if self.spans.boundary(self.seen, self.first_max) > past:
                raise KvbenchError(
                    f"layers that share a latent attend as decoded in blocks of at most {self.most_at_once} tokens, "
                    f"the recent window, and not {new}: what leaves the window must be known to all of them"
                )
            for seen in range(past + 1, self.seen + 1):
                boundary = self.spans.boundary(seen, self.first_max)
                self._encode_group(boundary)
                self._catch_up(boundary)
        else:
            self._catch_up(first.tail_start)

    def _catch_up(self, boundary: int) -> None:
        if boundary > self.tail_start:
            self._leave(boundary)

    def _encode_group(self, boundary: int) -> None:
        """Append all members' tokens from this member's tail up to slot ``boundary`` to the body."""
        start = max(self.tail_start, self.spans.sinks)
        if start < boundary:
            leaving = [
                member._leaving(slice(start - member.tail_start, boundary - member.tail_start)) for member in self.group
            ]
            keys, values = (torch.cat(heads, 1) for heads in zip(*leaving, strict=True))
            self._append(keys, values)

    def _in_frame(self, keys: Tensor, slots: Tensor | None) -> Tensor:
        """The heads of every member are turned back by its own rotation."""
        heads = zip(self.group, keys.chunk(len(self.group), 1), strict=True)
        return torch.cat([CompressedLayer._in_frame(member, part, slots) for member, part in heads], 1)

    def _encode(self, keys: Tensor, values: Tensor) -> Stored:
        return self.whole.bound(self.body.fitted).encode(keys, values)
