"""What the distributions of single tokens tell beside their mean KLD, as llama.cpp's ``--kl-divergence`` names it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from kvbench.measure.divergence import divergence, nll_of
from kvbench.measure.parts.quality import LEVELS, KldAtDistance, TokenStatistics

LIKELIEST = 5
"""Tokens whose agreement is called top-5."""

DISTANCES = (32, 128, 512, 2048)
"""Tokens after the prompt at which one bin of distances ends and the next begins."""


@dataclass(frozen=True)
class TokenScores:
    """Per scored token of one document, (tokens,) fp64, in the order of the document."""

    kld: Tensor
    """KL(uncompressed ‖ compressed) in nats."""
    nll: Tensor
    """Negative log-likelihood of the document's next token."""
    same_top1: Tensor
    """1 where both rank the same token first, else 0."""
    top5: Tensor
    """The share of the uncompressed model's five likeliest tokens that are the compressed model's, too."""

    @classmethod
    def of(cls, before: Tensor, after: Tensor, targets: Tensor) -> TokenScores:
        """From log-probabilities (tokens, vocabulary), uncompressed and compressed, and next tokens (tokens,)."""
        first, second = before.topk(LIKELIEST).indices, after.topk(LIKELIEST).indices
        return cls(
            kld=divergence(before, after),
            nll=nll_of(after, targets),
            same_top1=(before.argmax(-1) == after.argmax(-1)).double(),
            top5=(first[:, :, None] == second[:, None, :]).double().sum((1, 2)) / LIKELIEST,
        )

    @classmethod
    def joined(cls, parts: list[TokenScores]) -> TokenScores:
        """One after the other."""
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))


def token_statistics(documents: list[TokenScores], baseline_nll: list[Tensor]) -> TokenStatistics:
    """Over all tokens of ``documents``, of which ``baseline_nll`` has the uncompressed model's likelihoods."""
    scores, before = TokenScores.joined(documents), torch.cat(baseline_nll)
    delta_p = (-scores.nll).exp() - (-before).exp()
    return TokenStatistics(
        kld_standard_error=float(scores.kld.std() / len(before) ** 0.5) if len(before) > 1 else None,
        kld_percentiles=_percentiles(scores.kld),
        top5_overlap=float(scores.top5.mean()),
        delta_p_mean=float(delta_p.mean()),
        delta_p_rms=float(delta_p.square().mean().sqrt()),
        delta_p_percentiles=_percentiles(delta_p),
        nll_correlation=_correlation(scores.nll, before),
        kld_by_distance=_by_distance([document.kld for document in documents]),
    )


def _percentiles(values: Tensor) -> tuple[float, ...]:
    return tuple(values.quantile(torch.tensor(LEVELS, dtype=values.dtype, device=values.device) / 100).tolist())


def _correlation(first: Tensor, second: Tensor) -> float | None:
    """Pearson's; None where one of both does not vary."""
    if len(first) < 2 or not (first.std() > 0 and second.std() > 0):
        return None
    return min(float(torch.corrcoef(torch.stack([first, second]))[0, 1]), 1.0)


def _by_distance(documents: list[Tensor]) -> tuple[KldAtDistance, ...]:
    bins = []
    for start, end in zip((0, *DISTANCES), (*DISTANCES, None), strict=True):
        within = torch.cat([kld[start:end] for kld in documents])
        if len(within):
            last = max(map(len, documents))
            bins.append(
                KldAtDistance(
                    first=start + 1, last=min(end or last, last), tokens=len(within), kld_mean=float(within.mean())
                )
            )
    return tuple(bins)
