"""Attention in the latents: queries are projected into them once and outputs out of them once; nothing is rebuilt.

With keys ``k = D z + μ`` a score is ``q·k = (Dᵀq)·z + q·μ``, and with values ``v = D z + μ`` the output is
``D (Σ p z) + μ`` (the absorption of DeepSeek-V2's MLA, arXiv 2405.04434, section 2.1, for any linear transform).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kvbench.cache.way import Way
from kvbench.codecs.codec import Codec, Latents, Rotate
from kvbench.codecs.kernel_view import Coded
from kvbench.codecs.quantizers.base import Stored
from kvbench.codecs.stored import side, span, tiles
from kvbench.kernels.choice import Kernels
from kvbench.kernels.decode import attend_exact
from kvbench.kernels.reference import Part, Partial, merge, partial_attention, wide

Prepared = Callable[[Tensor, Tensor | None, Rotate | None], Part]
"""Attention of a query, with a mask and the rotation of stored keys, over codes whose addresses are known."""


def into_latents(query: Tensor, keys: Latents) -> tuple[Tensor, Tensor | None]:
    """``query`` (batch, heads, 1, head_dim) → (batch, groups, rows, rank), and what the mean adds (batch, heads, 1).

    Rows are the query heads of all KV heads of a group.
    """
    batch, heads, _, dim = query.shape
    side = keys.side
    if side.transform is None:
        return query.reshape(batch, side.kv_heads, heads // side.kv_heads, dim), None
    basis, mean, queries = _by_head(query, keys)
    latents = torch.matmul(queries, basis.transpose(-1, -2))
    shift = torch.matmul(queries, mean.unsqueeze(-1)) if keys.shifts else None
    groups = side.groups
    latents = latents.unflatten(1, (batch, -1)).unflatten(0, (groups, -1)).permute(2, 0, 1, 3, 4)
    if shift is not None:
        shift = shift.view(side.kv_heads, batch, -1).transpose(0, 1).reshape(batch, heads, 1)
    return latents.reshape(batch, groups, -1, side.rank), shift


def from_latents(output: Tensor, values: Latents, heads: int) -> Tensor:
    """Sums of latents (batch, groups, rows, rank) → (batch, heads, 1, head_dim)."""
    batch, side = output.shape[0], values.side
    if side.transform is None:
        return output.reshape(batch, heads, 1, -1)
    sums = output.reshape(batch, side.kv_heads, heads // side.kv_heads, side.rank).transpose(0, 1).flatten(1, 2)
    basis, mean = by_head(values)
    states = torch.baddbmm(mean.unsqueeze(1), sums.to(basis.dtype), basis)
    return states.unflatten(1, (batch, -1)).transpose(0, 1).reshape(batch, heads, 1, -1)


def attend_absorbed(
    codec: Codec,
    query: Tensor,
    stored: Stored,
    tokens: int,
    scaling: float,
    mask: Tensor | None,
    chosen: Way,
) -> Part:
    """One query per row over ``stored`` keys and values (in the frame that the query is in), without a softcap."""
    latents, shift = into_latents(query, codec.latents["keys"])
    mask = of_groups(mask, latents.shape[1])
    part = _in_latents(codec, latents, stored, tokens, scaling, mask, chosen)
    heads = query.shape[1]
    lse = part.lse.reshape(query.shape[0], heads, 1)
    output = from_latents(part.output, codec.latents["values"], heads).to(wide(query.dtype))
    return Partial(output, lse if shift is None else lse + shift * scaling, str(chosen))


def prepare_absorbed(codec: Codec, query: Tensor, tokens: int, scaling: float, chosen: Way) -> Prepared | None:
    """:func:`attend_absorbed` of queries like ``query`` (batch, heads, 1, head_dim), as long as codes stay in place.

    None unless there is a kernel that takes queries into the latents and brings outputs back by itself.
    """
    kernels, keys, values = chosen.kernels, chosen.keys, chosen.values
    if kernels is None or kernels.basis is None or query.dtype not in kernels.dtypes:
        return None
    if not isinstance(keys, Coded) or not isinstance(values, Coded) or keys.codes.shape[1] != values.codes.shape[1]:
        return None
    bases = [kernel_basis(kernels, codec.latents[name]) for name in ("keys", "values")]
    if not all(usable for _, usable in bases):
        return None
    groups, by = keys.codes.shape[1], str(chosen)
    attention = kernels.prepare(by_group(query, groups), keys, values, tokens, scaling, (bases[0][0], bases[1][0]))

    def attend(query: Tensor, mask: Tensor | None, rotate: Rotate | None) -> Part:
        return attention(query, of_groups(mask, groups), None, by)

    return attend


def by_group(query: Tensor, groups: int) -> tuple[int, int, int, int]:
    """The shape (batch, groups, rows, head_dim) of a ``query`` (batch, heads, 1, head_dim) by head groups."""
    batch, heads, _, dim = query.shape
    return batch, groups, heads // groups, dim


def of_groups(mask: Tensor | None, groups: int) -> Tensor | None:
    """A ``mask`` by KV head, or one for all, by head group: heads that share a latent hold the same tokens."""
    return mask if mask is None or mask.shape[1] <= groups else mask[:, :: mask.shape[1] // groups]


def by_head(latents: Latents) -> tuple[Tensor, Tensor]:
    """Per KV head: the decoder (kv heads, rank, head_dim) and the mean (kv heads, head_dim), as wide as it computes."""
    decoder, mean = latents.decoder, latents.mean
    assert decoder is not None and mean is not None
    return decoder.to(latents.dtype).transpose(1, 2).flatten(0, 1), mean.to(latents.dtype).flatten(0, 1)


def kernel_basis(kernels: Kernels, latents: Latents) -> tuple[object, bool]:
    """What kernels that go into latents and back by themselves take, None without a basis; and whether they can."""
    if latents.decoder is None or latents.mean is None or kernels.basis is None:
        return None, latents.decoder is None
    basis = kernels.basis(latents.decoder, latents.mean)
    return basis, bool(basis.usable)


def _by_head(query: Tensor, keys: Latents) -> tuple[Tensor, Tensor, Tensor]:
    """Decoder, mean, and the queries of each KV head (kv heads, batch · queries per head, head_dim)."""
    basis, mean = by_head(keys)
    batch, heads, _, dim = query.shape
    kv_heads = keys.side.kv_heads
    queries = query.reshape(batch, kv_heads, heads // kv_heads, dim).transpose(0, 1)
    return basis, mean, queries.flatten(1, 2).to(basis.dtype)


def _in_latents(
    codec: Codec, latents: Tensor, stored: Stored, tokens: int, scaling: float, mask: Tensor | None, chosen: Way
) -> Part:
    """Over latents (batch, groups, rows, rank): codes through a kernel, floats as they are, else in plain torch."""
    keys, values, kernels = chosen.keys, chosen.values, chosen.kernels
    if isinstance(keys, Tensor) and isinstance(values, Tensor):
        batch, groups, rows, rank = latents.shape
        query = latents.reshape(batch, groups * rows, 1, rank)
        part = attend_exact(query, keys, values, scaling, mask, None, kernels is not None)
        return Partial(part.output.view(batch, groups, rows, -1), part.lse.view(batch, groups, rows))
    if kernels is not None and isinstance(keys, Coded) and isinstance(values, Coded):
        return kernels.prepare(tuple(latents.shape), keys, values, tokens, scaling)(latents, mask)
    return _in_torch(codec, latents, stored, tokens, scaling, mask)


def _in_torch(
    codec: Codec, latents: Tensor, stored: Stored, tokens: int, scaling: float, mask: Tensor | None
) -> Partial:
    """Tile by tile, in plain torch."""
    batch, groups, rows, rank = latents.shape
    query = latents.reshape(batch, groups * rows, 1, rank)
    parts = []
    for start, stop in tiles(tokens, codec.block):
        tile = span(stored, tokens, start, stop)
        keys, values = (
            side_codec.quantizer.decode(side(tile, name)).to(latents.dtype) for name, side_codec in codec.sides.items()
        )
        parts.append(partial_attention(query, keys, values, scaling, None if mask is None else mask[..., start:stop]))
    part = merge(parts)
    return Partial(part.output.view(batch, groups, rows, -1), part.lse.view(batch, groups, rows))
