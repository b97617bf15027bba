"""Attention over keys that must be rebuilt, since they are stored before RoPE, and values that need not be.

Keys are rebuilt and rotated a tile at a time; values stay latents, of which sums are brought back once
(:mod:`kvbench.cache.absorb`). Keys and values of a joint latent are decoded, or unpacked, once for both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.cache.absorb import by_head, from_latents, kernel_basis
from kvbench.cache.block_frame import BlockRotation
from kvbench.cache.way import REBUILT, Way
from kvbench.codecs.codec import Codec, Latents, Rotate
from kvbench.codecs.kernel_view import Coded
from kvbench.codecs.quantizers.base import Stored
from kvbench.codecs.stored import side, span, tiles
from kvbench.hooks.rotary import EntryRotation
from kvbench.kernels.choice import Kernels
from kvbench.kernels.rebuilding import BlockReferences, RebuiltKeys
from kvbench.kernels.reference import Partial, merge, wide


def attend_rebuilt(
    codec: Codec,
    query: Tensor,
    stored: Stored,
    tokens: int,
    rotate: Rotate | None,
    scaling: float,
    mask: Tensor | None,
    chosen: Way,
) -> Partial:
    """One query per row, in the frame of rotated keys, over ``stored`` ones, without a softcap."""
    part = _by_kernel(codec, query, tokens, rotate, scaling, mask, chosen)
    return _in_torch(codec, query, stored, tokens, rotate, scaling, mask) if part is None else part


def _by_kernel(
    codec: Codec,
    query: Tensor,
    tokens: int,
    rotate: Rotate | None,
    scaling: float,
    mask: Tensor | None,
    chosen: Way,
) -> Partial | None:
    """Through the kernel that was chosen, if one was."""
    kernels, keys, values = chosen.kernels, chosen.keys, chosen.values
    if kernels is None or not isinstance(keys, Coded) or not isinstance(values, Coded):
        return None
    batch, heads, _, dim = query.shape
    groups = keys.codes.shape[1]
    rotary = rotate.rotary(groups) if isinstance(rotate, EntryRotation) else None
    basis, usable = kernel_basis(kernels, codec.latents["values"])
    absorbing = _absorbing(codec, kernels, rotate, groups)
    if absorbing is None:
        return None
    if mask is not None and mask.shape[1] > groups:
        mask = mask[:, :: mask.shape[1] // groups]  # heads that share a latent hold the same tokens
    source = codec.latents["keys"]
    key_basis, references = absorbing
    dims = None if codec.bands is None else codec.bands.fast
    rebuilt = RebuiltKeys(keys, source.decoder, source.mean, rotary, dims, references)
    rows, absorbed = query.reshape(batch, groups, heads // groups, dim), keys if references else None
    bases = key_basis, basis if usable else None
    part = kernels.coded(rows, absorbed, values, tokens, scaling, mask, bases, rebuilt)
    output = part.output if usable else from_latents(part.output, codec.latents["values"], heads)
    return Partial(output.view(batch, heads, 1, -1), part.lse.view(batch, heads, 1), str(chosen))


def _absorbing(
    codec: Codec, kernels: Kernels, rotate: Rotate | None, groups: int
) -> tuple[object, BlockReferences | None] | None:
    """With bands, the basis and the references by which slow dimensions are absorbed; None if the kernel cannot."""
    if codec.bands is None:
        return None, None
    references = rotate.references(groups) if isinstance(rotate, BlockRotation) else None
    key_basis, usable = kernel_basis(kernels, codec.latents["keys"])
    if references is None or not usable:
        return None
    return key_basis, BlockReferences(codec.bands.block, references)


def _in_torch(
    codec: Codec,
    query: Tensor,
    stored: Stored,
    tokens: int,
    rotate: Rotate | None,
    scaling: float,
    mask: Tensor | None,
) -> Partial:
    """Tile by tile, in plain torch."""
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
