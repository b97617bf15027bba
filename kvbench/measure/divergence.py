"""How far two next-token distributions are apart, and how likely a token is under one."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64
"""Tokens whose distributions are compared at once: bounds the fp64 temporaries."""


def divergence(baseline: Tensor, candidate: Tensor) -> Tensor:
    """KL(baseline ‖ candidate) per token in nats, (tokens,) fp64, from log-probabilities (tokens, vocabulary).

    Every term is p·log(p/q) − p + q, which is never negative and has the same sum: the normalisers of fp32
    log-probabilities are off by 1e-8, and that would be the result where the distributions hardly differ.
    """
    parts = []
    for start in range(0, len(baseline), CHUNK):
        p, q = baseline[start : start + CHUNK].double(), candidate[start : start + CHUNK].double()
        parts.append((p.exp() * (p - q - 1) + q.exp()).sum(-1))
    return torch.cat(parts)


def nll_of(predicted: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood (tokens,) fp64 of ``targets`` (tokens,) under log-probabilities (tokens, vocabulary)."""
    return -predicted.gather(1, targets[:, None])[:, 0].double()
