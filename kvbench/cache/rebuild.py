"""Attention over keys that must be rebuilt, since they are stored before RoPE, and values that need not be.

Keys are rebuilt and rotated a tile at a time; values stay latents, of which sums are brought back once
(:mod:`kvbench.cache.absorb`). Keys and values of a joint latent are decoded, or unpacked, once for both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.cache.absorb import Prepared, by_group, by_head, from_latents, kernel_basis, of_groups
from kvbench.cache.block_frame import BlockRotation
from kvbench.cache.way import REBUILT, Way
from kvbench.codecs.codec import Codec, Latents, Rotate
from kvbench.codecs.kernel_view import Coded
from kvbench.codecs.quantizers.base import Stored
from kvbench.codecs.stored import side, span, tiles
from kvbench.hooks.rotary import EntryRotation
from kvbench.hooks.turns import Turn
from kvbench.kernels.rebuilding import KeyRotation, RebuiltKeys, identity_basis
from kvbench.kernels.reference import Part, Partial, merge, wide


def prepare_rebuilt(
    codec: Codec, query: Tensor, tokens: int, turn: Turn | bool, scaling: float, chosen: Way
) -> Prepared | None:
    """Attention of queries like ``query`` (batch, heads, 1, head_dim) by a kernel, as long as codes stay in place.

    ``turn`` is how keys are rotated, False if they are not. None without a kernel.
    """
    kernels, keys, values = chosen.kernels, chosen.keys, chosen.values
    if kernels is None or not isinstance(keys, Coded) or not isinstance(values, Coded):
        return None
    basis, usable = kernel_basis(kernels, codec.latents["values"])
    decoder, mean = decoder_of(codec.latents["keys"], keys)
    bands, key_basis = codec.bands, None
    if bands is not None and kernels.basis is not None:
        key_basis = kernels.basis(decoder, mean)
        if not key_basis.usable:
            return None
    dims, block = (None, 0) if bands is None else (bands.fast, bands.block)
    rebuilt = RebuiltKeys(keys, decoder, mean, turn if isinstance(turn, Turn) else None, dims, block)
    groups, heads, by = keys.codes.shape[1], query.shape[1], str(chosen)
    absorbed, bases = None if bands is None else keys, (key_basis, basis if usable else None)
    attention = kernels.prepare(by_group(query, groups), absorbed, values, tokens, scaling, bases, rebuilt)

    def attend(query: Tensor, mask: Tensor | None, rotate: Rotate | None) -> Part:
        part = attention(query, of_groups(mask, groups), key_rotation(rotate, groups), by)
        if usable:
            return part
        return Partial(from_latents(part.output, codec.latents["values"], heads), part.lse, by)

    return attend


def decoder_of(latents: Latents, keys: Coded) -> tuple[Tensor, Tensor]:
    """The decoder of ``latents`` and their mean; of keys that are stored as they are, too."""
    if latents.decoder is None or latents.mean is None:
        return identity_basis(keys.codes.shape[1], len(keys.widths), keys.codes.device)
    return latents.decoder, latents.mean


def rotation_of(rotate: Rotate | None) -> Turn | bool:
    """How ``rotate`` rotates: False if it does not, True if only it knows."""
    if rotate is None:
        return False
    return (isinstance(rotate, EntryRotation) and rotate.turn) or True


def key_rotation(rotate: Rotate | None, groups: int) -> KeyRotation | None:
    """Where a kernel rotates keys to, for ``groups`` of heads that hold the same tokens each."""
    rotary = rotate.rotary(groups) if isinstance(rotate, EntryRotation) else None
    if rotary is None:
        return None
    return KeyRotation(rotary, rotate.references(groups) if isinstance(rotate, BlockRotation) else None)


def attend_rebuilt(
    codec: Codec,
    query: Tensor,
    stored: Stored,
    tokens: int,
    rotate: Rotate | None,
    scaling: float,
    mask: Tensor | None,
) -> Partial:
    """One query per row, in the frame of rotated keys, over ``stored`` ones, without a softcap: in plain torch."""
    (batch, heads, _, dim), keys, values = query.shape, codec.latents["keys"], codec.latents["values"]
    kv_heads, groups, dtype = keys.side.kv_heads, values.side.groups, wide(query.dtype)
    folded = query.reshape(batch, kv_heads, heads // kv_heads, dim).to(dtype) * scaling
    parts = []
    for start, stop in tiles(tokens, codec.block):
        tile = span(stored, tokens, start, stop)
        latents = {name: codec.latents[name].side.quantizer.decode(side(tile, name)) for name in codec.sides}
        states = _keys(latents[keys.name], keys).to(query.dtype)
        states = states if rotate is None else rotate(states, start, stop)
        scores = torch.matmul(folded, states.to(dtype).transpose(-1, -2))  # (batch, kv heads, queries, tokens)
        if mask is not None:
            scores = scores.masked_fill(~mask[..., start:stop], torch.finfo(dtype).min)
        parts.append(_mixed(scores, latents[values.name].to(dtype), groups))
    part = merge(parts)
    output = from_latents(part.output, values, heads).to(dtype)
    return Partial(output, part.lse.reshape(batch, heads, 1), str(REBUILT))


def _keys(latents: Tensor, keys: Latents) -> Tensor:
    """Latents (batch, groups, tokens, rank) → keys (batch, kv heads, tokens, head_dim) before RoPE."""
    if keys.side.transform is None:
        return latents
    basis, mean = by_head(keys)
    states = torch.matmul(
        latents.to(basis.dtype).unsqueeze(2), basis.unflatten(0, (latents.shape[1], -1))
    )  # (batch, groups, heads, tokens, head_dim)
    return states.flatten(1, 2) + mean.unsqueeze(-2)


def _mixed(scores: Tensor, latents: Tensor, groups: int) -> Partial:
    """Sums of latents (batch, groups, tokens, rank) weighted by the softmax of ``scores``."""
    scores = scores.reshape(scores.shape[0], groups, -1, scores.shape[-1])
    top = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    return Partial(torch.matmul(weights / total, latents), (top + total.log()).squeeze(-1))
