"""Decoding token by token through the real decode path, beside scoring the same tokens in blocks.

Blocks attend in plain torch; a single token attends through the decode kernels, where there are some. Both see the
same compressed cache, so their distributions over the same tokens must agree up to the kernels' rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.measure.divergence import divergence
from kvbench.measure.parts.quality import DecodedResult
from kvbench.measure.prompt import ExactPrompt


@dataclass(frozen=True)
class DecodedScores:
    """Per decoded token of one document, fp64: KLD of the decoded and of the block-scored distributions against the
    baseline's, and of the decoded against the block-scored. ``attention``: what attended, read back from the cache."""

    kld: Tensor
    block_kld: Tensor
    from_blocks: Tensor
    attention: str


def pooled(scores: Sequence[DecodedScores]) -> DecodedResult:
    """Means over all tokens of all documents."""
    kld, block, between = (
        torch.cat([getattr(score, name) for score in scores]) for name in ("kld", "block_kld", "from_blocks")
    )
    return DecodedResult(
        tokens=len(kld),
        kld_mean=float(kld.mean()),
        block_kld_mean=float(block.mean()),
        from_blocks_kld=float(between.mean()),
        attention=" | ".join(sorted({score.attention for score in scores})),
    )


def score_decoded(arm: Arm, prompt: ExactPrompt, fed: Tensor, baseline: Tensor, blocks: Tensor) -> DecodedScores:
    """Decode ``fed`` (1, tokens) one by one after ``prompt`` through ``arm``.

    ``baseline`` and ``blocks`` are log-probabilities (tokens, vocabulary) after the same tokens, scored in blocks
    through the uncompressed cache and through ``arm``.

    Raises:
        KvbenchError: the model's logits are not finite.
    """
    with arm.entered():
        cache = arm.fill(prompt)
        logits = torch.cat([arm.forward(fed[:, [step]], cache)[0] for step in range(fed.shape[1])]).float()
    if not bool(logits.isfinite().all()):
        raise KvbenchError(f"{arm.name}: the logits of decoded tokens are not finite; check the decode kernels")
    decoded = torch.log_softmax(logits, -1)
    return DecodedScores(
        divergence(baseline, decoded), divergence(baseline, blocks), divergence(blocks, decoded), arm.attended_by(cache)
    )
