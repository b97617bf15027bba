"""Attention over a body that is decoded tile by tile: each is used and dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from kvbench.kernels.reference import TILE_SCORES, Part, attention_in_slices, merge


def attend_tiles(
    query: Tensor,
    tiles: Iterable[tuple[int, int]],
    decoded: Callable[[int, int], tuple[Tensor, Tensor]],
    scaling: float,
    mask: Tensor | None,
    softcap: float | None,
) -> Part:
    """Attention of ``query`` (batch, heads, queries, width) over the keys and values of all ``tiles``.

    Args:
        tiles: first token and the one after the last, of each.
        decoded: their keys (batch, kv heads, tokens, width) and values.
        mask: boolean, broadcastable to (batch, kv heads or 1, queries, tokens of all tiles).
    """
    parts = []
    for start, stop in tiles:
        tile_mask = None if mask is None else mask[..., start:stop]
        if tile_mask is not None and query.shape[2] > 1 and bool(tile_mask.all()):
            tile_mask = None  # most tiles of a long body are seen whole by a whole block of queries
        parts.append(attention_in_slices(query, *decoded(start, stop), scaling, tile_mask, softcap, TILE_SCORES))
    return merge(parts)
