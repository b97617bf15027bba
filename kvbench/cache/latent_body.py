"""Attention over the compressed RoPE keys and latents of multi-head latent attention; the cache is never expanded.

A codec with a basis makes latents of latents, ``c = D z + μ``, and absorption goes on where it stopped: queries in the
model's latents are taken into the codec's once (``q·c = (Dᵀq)·z + q·μ``), and sums brought back once. RoPE keys, one
narrow head of them, are rebuilt tile by tile, and rotated if they are stored before RoPE. A kernel does all of it where
one reads the codes (:mod:`kvbench.cache.decoupled`), else plain torch. The forms of queries are in
:mod:`kvbench.hooks.latent_attention`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.absorb import Prepared, from_latents, into_latents
from kvbench.cache.decoded_tiles import attend_tiles
from kvbench.cache.decoupled import Decoupled
from kvbench.cache.rebuild import rotation_of
from kvbench.cache.way import ABSORBED, DECODED, Way, latent_way
from kvbench.codecs.codec import Codec, Rotate
from kvbench.codecs.kernel_view import Coded, lies_in
from kvbench.codecs.quantizers.base import Stored
from kvbench.codecs.stored import side, span, tiles
from kvbench.hooks.latent_attention import Form
from kvbench.kernels.decode import attend_exact
from kvbench.kernels.reading import DEFAULT, Reading
from kvbench.kernels.reference import Part, Partial, merge, partial_attention, wide


@dataclass(frozen=True)
class LatentBodyAttention:
    """Attention over what ``codec`` has stored, by queries in ``form``, as far as ``reading`` allows."""

    codec: Codec
    form: Form
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
        """Attention of ``query`` (batch, heads, queries, as wide as the form says) over the ``tokens`` stored.

        ``mask`` is boolean, broadcastable to (batch, 1, queries, tokens).
        """
        if self._fast(query, softcap):
            return self._attend_one(query, stored, tokens, rotate, scaling, mask)

        def decoded(start: int, stop: int) -> tuple[Tensor, Tensor]:
            return self.form.met(*self.codec.tile(span(stored, tokens, start, stop), rotate, start, stop, query.dtype))

        part = attend_tiles(query, tiles(tokens, self.codec.block), decoded, scaling, mask, softcap)
        return Partial(part.output, part.lse, str(ABSORBED if self.form.absorbed else DECODED))

    def prepare(
        self, query: Tensor, stored: Stored, tokens: int, rotate: Rotate | None, scaling: float, softcap: float | None
    ) -> Prepared | None:
        """:meth:`attend` of queries like this one by a kernel, as long as ``stored`` stays where it is.

        None where no kernel reads codes, or it reads what was made of ``stored`` for it.
        """
        if not self._fast(query, softcap):
            return None
        chosen = self._way(query, stored, rotate)
        rope, latent = chosen.keys, chosen.values
        if rope is None or not isinstance(latent, Coded) or not latent.lies_in(stored):
            return None
        if not (rope.lies_in(stored) if isinstance(rope, Coded) else lies_in(rope, stored)):
            return None
        return self._prepared(query, tokens, rotate, scaling, chosen)

    def _fast(self, query: Tensor, softcap: float | None) -> bool:
        one = query.shape[2] == 1 and softcap is None and not query.requires_grad
        return one and self.form.absorbed and self.codec.absorbable and self.reading.absorbs

    def _attend_one(
        self, query: Tensor, stored: Stored, tokens: int, rotate: Rotate | None, scaling: float, mask: Tensor | None
    ) -> Part:
        """One query per row: over codes or floating-point numbers where they lie, else over tiles of the codec's
        latents."""
        chosen = self._way(query, stored, rotate)
        prepared = self._prepared(query, tokens, rotate, scaling, chosen)
        if prepared is not None:
            part = prepared(query, mask, rotate)
            return Partial(part.output, part.lse, part.by)  # computed while what kernels know by address is there
        if isinstance(chosen.keys, Tensor) and isinstance(chosen.values, Tensor):
            exact = self.form.met(chosen.keys, chosen.values)
            part = attend_exact(query, *exact, scaling, mask, None, chosen.kernels is not None)
            return Partial(part.output, part.lse, str(chosen))
        return self._absorbed(query, stored, tokens, rotate, scaling, mask)

    def _way(self, query: Tensor, stored: Stored, rotate: Rotate | None) -> Way:
        return latent_way(self.codec, stored, (query.dtype, query.device), rotation_of(rotate), self.reading)

    def _prepared(
        self, query: Tensor, tokens: int, rotate: Rotate | None, scaling: float, chosen: Way
    ) -> Prepared | None:
        rope, latent = self.codec.latents["keys"], self.codec.latents["values"]
        return Decoupled(rope, latent, latent).prepare(query, tokens, rotation_of(rotate), scaling, chosen)

    def _absorbed(
        self, query: Tensor, stored: Stored, tokens: int, rotate: Rotate | None, scaling: float, mask: Tensor | None
    ) -> Part:
        keys, values, (batch, heads) = self.codec.keys, self.codec.latents["values"], query.shape[:2]
        rope, nope = query.split([keys.head_dim, values.width], -1)
        nope, shift = into_latents(nope, values)  # (batch, 1, heads, rank)
        nope = nope.transpose(1, 2).to(wide(nope.dtype))
        queries = torch.cat([rope.to(nope.dtype), nope], -1)
        parts = []
        for start, stop in tiles(tokens, self.codec.block):
            tile = span(stored, tokens, start, stop)
            rope_keys = keys.decode(side(tile, "keys")).to(query.dtype)
            rope_keys = rope_keys if rotate is None else rotate(rope_keys, start, stop)
            latents = values.side.quantizer.decode(side(tile, "values")).to(nope.dtype)
            met = torch.cat([rope_keys.to(latents.dtype), latents], -1)
            parts.append(
                partial_attention(queries, met, latents, scaling, None if mask is None else mask[..., start:stop])
            )
        part = merge(parts)
        lse = part.lse if shift is None else part.lse + shift * scaling
        output = from_latents(part.output.transpose(1, 2), values, heads).view(batch, heads, 1, -1)
        return Partial(output, lse, str(ABSORBED))
