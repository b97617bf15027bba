"""Attention over the compressed body: as latents as far as the codec can, else over decoded tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.absorb import Prepared, attend_absorbed, prepare_absorbed
from kvbench.cache.body import Body
from kvbench.cache.decoded_tiles import attend_tiles
from kvbench.cache.decoupled import Decoupled
from kvbench.cache.latent_body import LatentBodyAttention
from kvbench.cache.rebuild import attend_rebuilt, prepare_rebuilt, rotation_of
from kvbench.cache.way import DECODED, Way, way
from kvbench.codecs.codec import Codec, Rotate
from kvbench.codecs.kernel_view import Coded
from kvbench.codecs.quantizers.base import Stored
from kvbench.codecs.stored import span, tiles
from kvbench.hooks.latent_attention import Form
from kvbench.kernels.reading import DEFAULT, Reading
from kvbench.kernels.reference import Part, Partial

MOST_ROWS = 512
"""Queries of the heads that share latents which a kernel takes at once: its sums are to stay in a core's cache."""


@dataclass(frozen=True)
class BodyAttention:
    """Attention over what ``codec`` has stored, as far as ``reading`` allows."""

    codec: Codec
    reading: Reading = DEFAULT

    def attend(
        self,
        query: Tensor,
        stored: Stored,
        tokens: int,
        rotate: Rotate | None,
        scaling: float,
        mask: Tensor | None = None,
        softcap: float | None = None,
    ) -> Part:
        """Attention of ``query`` (batch, heads, queries, head_dim) over the ``tokens`` stored.

        A single query attends in the latents where the codec can and ``reading`` does not forbid it, or at least to
        values as latents, and so do several where a kernel attends to codes without rebuilding keys; else tiles of
        :data:`kvbench.codecs.stored.TILE` tokens are decoded, attended and dropped. Kernels rotate by themselves if
        ``rotate`` is an :class:`~kvbench.hooks.rotary.EntryRotation`. ``mask`` is boolean, broadcastable to (batch, kv
        heads or 1, queries, tokens). A ``decoupled`` codec takes the query with and without RoPE, side by side: (batch,
        heads, queries, 2 · head_dim).
        """
        if query.shape[2] > 1 and (coded := self._coded_for_each(query, stored, rotate, mask, softcap)) is not None:
            return self._as_heads(query, stored, tokens, rotate, scaling, mask, coded.codes.shape[1])
        chosen = self._way(query, stored, rotate, softcap)
        prepared = self._prepared(query, tokens, rotate, scaling, chosen)
        if prepared is not None:
            part = prepared(query, mask, rotate)
            return Partial(part.output, part.lse, part.by)  # computed while what kernels know by address is there
        chosen = DECODED if self.codec.decoupled else chosen
        if chosen.in_latents:
            return attend_absorbed(self.codec, query, stored, tokens, scaling, mask, chosen)
        if chosen.reads in ("rebuilt", "bands"):
            return attend_rebuilt(self.codec, query, stored, tokens, rotate, scaling, mask)

        def decoded(start: int, stop: int) -> tuple[Tensor, Tensor]:
            return self.codec.tile(span(stored, tokens, start, stop), rotate, start, stop, query.dtype)

        part = attend_tiles(query, tiles(tokens, self.codec.block), decoded, scaling, mask, softcap)
        return Partial(part.output, part.lse, str(chosen))

    def prepare(
        self, query: Tensor, stored: Stored, tokens: int, rotate: Rotate | None, scaling: float, softcap: float | None
    ) -> Prepared | None:
        """:meth:`attend` of queries like this one by a kernel, as long as ``stored`` stays where it is.

        Working out what a kernel is told takes longer than a short attention. None where no kernel attends, where it
        reads what was made of ``stored`` for it, or where it would keep alive what a body no longer stores.
        """
        chosen = self._way(query, stored, rotate, softcap)
        if chosen.kernels is None or not chosen.kernels.by_address:
            return None
        sides = chosen.keys, chosen.values
        if not all(isinstance(coded, Coded) and coded.lies_in(stored) for coded in sides):
            return None
        return self._prepared(query, tokens, rotate, scaling, chosen)

    def _coded_for_each(
        self, query: Tensor, stored: Stored, rotate: Rotate | None, mask: Tensor | None, softcap: float | None
    ) -> Coded | None:
        """The keys' codes if a kernel attends to them for each of several queries, which must see the same tokens.

        On CPU alone: elsewhere it is not measured against products of whole tiles.
        """
        if query.device.type != "cpu":
            return None
        chosen = self._way(query[:, :, :1], stored, rotate, softcap)
        if chosen.kernels is None or not chosen.in_latents or not isinstance(chosen.values, Coded):
            return None
        alike = mask is None or bool((mask == mask[:, :, -1:]).all())
        return chosen.keys if alike and isinstance(chosen.keys, Coded) else None

    def _as_heads(
        self,
        query: Tensor,
        stored: Stored,
        tokens: int,
        rotate: Rotate | None,
        scaling: float,
        mask: Tensor | None,
        groups: int,
    ) -> Partial:
        """Several queries as if they were one of so many more heads: what is unpacked serves all of them."""
        mask = None if mask is None or bool(mask.all()) else mask[:, :, -1:]
        heads, parts = query.shape[1], []
        for some in query.split(max(1, MOST_ROWS * groups // heads), 2):
            part = self.attend(some.flatten(1, 2).unsqueeze(2), stored, tokens, rotate, scaling, mask)
            parts.append(Partial(part.output.reshape(*some.shape[:3], -1), part.lse.reshape(some.shape[:3]), part.by))
        output, lse = torch.cat([part.output for part in parts], 2), torch.cat([part.lse for part in parts], 2)
        return Partial(output, lse, parts[0].by)

    def _way(self, query: Tensor, stored: Stored, rotate: Rotate | None, softcap: float | None) -> Way:
        fast = query.shape[2] == 1 and softcap is None and not query.requires_grad
        return way(self.codec, stored, (query.dtype, query.device), rotation_of(rotate), fast, self.reading)

    def _prepared(
        self, query: Tensor, tokens: int, rotate: Rotate | None, scaling: float, chosen: Way
    ) -> Prepared | None:
        if self.codec.decoupled:
            sides = self.codec.latents
            decoupled = Decoupled(sides["rope"], sides["keys"], sides["values"])
            return decoupled.prepare(query, tokens, rotation_of(rotate), scaling, chosen)
        if chosen.in_latents:
            return prepare_absorbed(self.codec, query, tokens, scaling, chosen)
        if chosen.reads in ("rebuilt", "bands"):
            return prepare_rebuilt(self.codec, query, tokens, rotation_of(rotate), scaling, chosen)
        return None


def body_attention(codec: Codec, reading: Reading, form: Form | None) -> BodyAttention | LatentBodyAttention:
    """Attention of queries in ``form`` over what ``codec`` has stored."""
    return BodyAttention(codec, reading) if form is None else LatentBodyAttention(codec, form, reading)


class BodyReader:
    """Attention over one layer's body, with what a kernel is told kept from step to step."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._prepared: Prepared | None = None

    def attend(
        self,
        attention: BodyAttention | LatentBodyAttention,
        body: Body,
        query: Tensor,
        rotate: Rotate | None,
        scaling: float,
        mask: Tensor | None,
        softcap: float | None,
    ) -> Part:
        """:meth:`BodyAttention.attend` over ``body``."""
        about_query = query.shape, query.dtype, query.requires_grad, scaling, softcap
        key = attention, rotation_of(rotate), *about_query, *body.place()
        if key != self._key:
            prepared = attention.prepare(query, body.view(), body.entries, rotate, scaling, softcap)
            self._key, self._prepared = key, prepared
        if self._prepared is not None:
            return self._prepared(query, mask, rotate)
        return attention.attend(query, body.view(), body.entries, rotate, scaling, mask, softcap)
