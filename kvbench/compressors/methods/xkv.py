"""``xkv``: one latent per token for several layers at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import groupby

from kvbench.cache.shared import MemberCodec
from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.online import Online


@dataclass(frozen=True)
class Xkv(Online):
    """xKV: an SVD of the prompt across ``layers`` adjacent layers, whose keys and values share their token factors.

    Based on Chang et al. 2025, xKV (arXiv 2503.18893), with groups of 4 and rank 512 for keys and 768 for values of
    4 · 1024 channels. Stored: for every group, once, ``rank`` coefficients per token for the keys (before RoPE) of all
    its layers and as many for the values; per sequence and group fp16 bases of rank · layers · width, so that the ratio
    grows with the length. A share of ``rank`` costs as many coefficients as in a method that knows one layer; a count
    is for the whole group. Differences: one rank for keys and values; both around their mean; decoded tokens are
    projected onto the prompt's bases as they leave the window, where the paper keeps them; the paper's code multiplies
    the factors back into a full cache, this one never does. Teacher forcing takes blocks of at most ``recent`` tokens.
    """

    name = "xkv"
    paper = "arXiv 2503.18893"

    layers: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.layers >= 1, f"layers={self.layers} must be at least 1")

    def apply(self, draft: Draft) -> None:
        """Online bases over the heads of a group of layers."""
        draft.store_keys_before_rope()
        self.require(
            all(layer.selector is None for layer in draft),
            "each layer of a group would evict other tokens, and they share one latent; leave the selector out",
        )
        for _, alike in groupby(draft, key=_shape):
            run = list(alike)
            for start in range(0, len(run), self.layers):
                self._share(run[start : start + self.layers], draft)

    def _share(self, group: list[LayerDraft], draft: Draft) -> None:
        members = tuple(layer.geometry.layer for layer in group)
        for place, layer in enumerate(group):
            for side in layer.sides:
                side.online = self.basis(len(group) * layer.geometry.kv_heads * side.head_dim, draft)
            if len(group) > 1:
                layer.codec = partial(MemberCodec, members=members, place=place)


def _shape(layer: LayerDraft) -> tuple[int, int, int]:
    return layer.geometry.kv_heads, layer.geometry.head_dim, layer.geometry.value_dim
