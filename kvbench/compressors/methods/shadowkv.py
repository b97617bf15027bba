"""``shadowkv``: keys in the principal axes of their own prompt."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft
from kvbench.compressors.online import Online


@dataclass(frozen=True)
class ShadowKv(Online):
    """ShadowKV's keys: an SVD of the prompt's keys before RoPE, all heads jointly, cut at ``rank``.

    Based on Sun et al. 2024, ShadowKV (arXiv 2410.21465), with rank 160 of 1024 channels. Stored: ``rank`` coefficients
    per token, and per sequence and layer an fp16 basis of rank · width, so that the ratio grows with the length;
    fitting it to all of the prompt that leaves the window is part of the prefill. Values stay in the cache's dtype, or
    take a quantizer (``shadowkv:rank=0.25+int:bits=4``). Differences: this is the low-rank half of the paper alone.
    Values are not moved to the CPU, no landmarks or outlier chunks choose a sparse set of tokens, all of them are
    attended; keys are taken around their mean; decoded tokens are projected onto the prompt's basis as they leave the
    window, where the paper keeps them.
    """

    name = "shadowkv"
    paper = "arXiv 2410.21465"

    def apply(self, draft: Draft) -> None:
        """An online basis for the keys of every layer."""
        draft.store_keys_before_rope()
        for layer in draft:
            layer.keys.online = self.basis(layer.geometry.kv_heads * layer.keys.head_dim, draft)
