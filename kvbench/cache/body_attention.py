"""Attention over the compressed body: as latents as far as the codec can, else over decoded tiles."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvbench.cache.absorb import attend_absorbed
from kvbench.cache.rebuild import attend_rebuilt
from kvbench.cache.way import way
from kvbench.codecs.codec import Codec, Rotate
from kvbench.codecs.quantizers.base import Stored
from kvbench.codecs.stored import span, tiles
from kvbench.hooks.rotary import EntryRotation
from kvbench.hooks.turns import Turn
from kvbench.kernels.reading import DEFAULT, Reading
from kvbench.kernels.reference import TILE_SCORES, Partial, attention_in_slices, merge


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
    ) -> Partial:
        """Attention of ``query`` (batch, heads, queries, head_dim) over the ``tokens`` stored.

        A single query attends in the latents where the codec can and ``reading`` does not forbid it, or at least to
        values as latents; else tiles of :data:`kvbench.codecs.stored.TILE` tokens are decoded, attended and dropped.
        Kernels rotate by themselves if ``rotate`` is an :class:`~kvbench.hooks.rotary.EntryRotation`. ``mask`` is
        boolean, broadcastable to (batch, kv heads or 1, queries, tokens). A ``decoupled`` codec takes the query with
        and without RoPE, side by side: (batch, heads, queries, 2 · head_dim).
        """
        fast = query.shape[2] == 1 and softcap is None and not query.requires_grad
        chosen = way(self.codec, stored, (query.dtype, query.device), _rotation(rotate), fast, self.reading)
        if chosen.in_latents:
            return attend_absorbed(self.codec, query, stored, tokens, scaling, mask, chosen)
        if chosen.reads in ("rebuilt", "bands"):
            return attend_rebuilt(self.codec, query, stored, tokens, rotate, scaling, mask, chosen)
        parts = []
        for start, stop in tiles(tokens, self.codec.block):
            keys, values = self.codec.tile(span(stored, tokens, start, stop), rotate, start, stop, query.dtype)
            tile_mask = None if mask is None else mask[..., start:stop]
            if tile_mask is not None and query.shape[2] > 1 and bool(tile_mask.all()):
                tile_mask = None  # most tiles of a long body are seen whole by a whole block of queries
            parts.append(attention_in_slices(query, keys, values, scaling, tile_mask, softcap, TILE_SCORES))
        part = merge(parts)
        return Partial(part.output, part.lse, str(chosen))


def _rotation(rotate: Rotate | None) -> Turn | bool:
    """How ``rotate`` rotates: False if it does not, True if only it knows."""
    if rotate is None:
        return False
    return (isinstance(rotate, EntryRotation) and rotate.turn) or True
