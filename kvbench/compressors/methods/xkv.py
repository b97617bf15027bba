"""``xkv``: one latent per token for several layers at once."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft
from kvbench.compressors.online import Online, prompt_basis
from kvbench.compressors.rules import Bounds, at_least
from kvbench.compressors.shared import layer_groups, share_latents


@dataclass(frozen=True)
class Xkv(Online):
    """xKV: an SVD of the prompt across ``layers`` adjacent layers, whose keys and values share their token factors.

    Based on Chang et al. 2025, xKV (arXiv 2503.18893), with groups of 4 and rank 512 for keys and 768 for values of 4 ·
    1024 channels. Stored: for every group, once, ``rank`` coefficients per token for the keys (before RoPE) of all its
    layers and as many for the values; per sequence and group fp16 bases of rank · layers · width, so that the ratio
    grows with the length. A share of ``rank`` costs as many coefficients as in a method that knows one layer; a count
    is for the whole group. ``rank`` is the mean of keys and values, whose ranks are 1 : ``ratio`` (512 : 768 in the
    paper) as far as there are channels. Differences: keys and values around their mean; decoded tokens are projected
    onto the prompt's bases as they leave the window, where the paper keeps them; the paper's code multiplies the
    factors back into a full cache, this one never does. Teacher forcing takes blocks of at most ``recent`` tokens.
    """

    name = "xkv"
    paper = "arXiv 2503.18893"
    published = ("xkv:recent=128+hadamard+int:bits=4",)
    """The paper keeps decoded tokens as they are; the window also is what teacher forcing takes at once."""
    rules = (*Online.rules, Bounds("ratio", 0, above=True), at_least("layers", 1))

    layers: int = 4
    ratio: float = 1.5

    def apply(self, draft: Draft) -> None:
        """Online bases over the heads of a group of layers."""
        draft.store_keys_before_rope()
        self.require(
            all(layer.selector is None for layer in draft),
            "each layer of a group would evict other tokens, and they share one latent; leave the selector out",
        )
        for group in layer_groups(draft, self.layers):
            share_latents(group)
            for layer in group:
                widths = [len(group) * layer.geometry.kv_heads * side.head_dim for side in layer.sides]
                for side, width, rank in zip(layer.sides, widths, self._ranks(*widths), strict=True):
                    side.online = prompt_basis(width, rank, draft)

    def _ranks(self, keys: int, values: int) -> tuple[int, int]:
        """Ranks of sides with so many channels: 1 : ``ratio``, and what one side cannot take goes to the other."""
        wanted = self.components(keys) + self.components(values)
        of_keys = max(wanted - values, min(keys, round(wanted / (1 + self.ratio)), wanted - 1), 1)
        return of_keys, wanted - of_keys
