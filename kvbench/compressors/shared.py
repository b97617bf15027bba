"""What methods across layers share: groups of adjacent layers whose compressed tokens are stored once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby

from kvbench.cache.shared import MemberCodec
from kvbench.compressors.draft import Draft, LayerDraft


def layer_groups(draft: Draft, size: int) -> list[list[LayerDraft]]:
    """Adjacent layers of one shape, ``size`` at a time (0: as many as there are)."""
    groups = []
    for _, alike in groupby(draft, key=_shape):
        run = list(alike)
        step = size or len(run)
        groups += [run[start : start + step] for start in range(0, len(run), step)]
    return groups


def share_latents(group: Sequence[LayerDraft]) -> None:
    """Let the layers of ``group`` store one latent per token; a layer alone keeps its codec."""
    members = tuple(layer.geometry.layer for layer in group)
    if len(members) > 1:
        for place, layer in enumerate(group):
            layer.codec = partial(MemberCodec, members=members, place=place)


def _shape(layer: LayerDraft) -> tuple[int, int, int]:
    return layer.geometry.kv_heads, layer.geometry.head_dim, layer.geometry.value_dim
