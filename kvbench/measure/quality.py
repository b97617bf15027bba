"""Quality: how far the compressed model's predictions are from the uncompressed model's.

A document's prefix is prefilled and compressed; the rest is teacher-forced through the cache in blocks that attend as
if decoded token by token, and scored. KLD is mean KL(uncompressed ‖ compressed) per scored token in nats (the
conventions of llama.cpp's ``--kl-divergence``); the uncompressed side is ``none`` run the same way, computed once per
document. The noise floor is ``none`` against the stock model's plain forward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.measure.prompt import ExactPrompt, exact_prompt
from kvbench.measure.statistics import cluster_bootstrap

CHUNK = 64
"""Tokens whose distributions are compared at once: bounds the fp64 temporaries."""


@dataclass(frozen=True)
class TokenScores:
    """Per scored token of one document: KLD against the baseline, negative log-likelihood, same top-1."""

    kld: Tensor
    nll: Tensor
    same_top1: Tensor


@dataclass(frozen=True)
class Quality:
    """Pooled over documents; intervals by resampling documents. See the module for what is scored."""

    documents: int
    tokens: int
    perplexity: float
    baseline_perplexity: float
    delta_nll: float
    delta_nll_interval: tuple[float, float] | None
    kld_mean: float
    kld_median: float
    kld_p99: float
    kld_max: float
    kld_interval: tuple[float, float] | None
    same_top1: float
    noise_floor_kld: float
    per_document_kld: tuple[float, ...]


@dataclass
class _Document:
    ids: Tensor
    prompt: ExactPrompt
    baseline: Tensor
    """Log-probabilities (scored tokens, vocabulary) of ``none``, fp32."""
    floor: Tensor
    """KLD of ``none`` against the stock forward pass, per token."""


@dataclass
class QualityBench:
    """Documents (count, length) with their shared baseline; :meth:`score` measures one arm against it."""

    none: Arm
    ids: Tensor
    prefix: int
    block: int
    _documents: list[_Document] = field(default_factory=list)

    def score(self, arm: Arm) -> Quality:
        """Teacher-force every document through ``arm``.

        Raises:
            KvbenchError: the model's logits are not finite.
        """
        scores = [self._score_document(arm, document) for document in self.documents()]
        return _pool(scores, list(self.documents()))

    def documents(self) -> list[_Document]:
        """The documents with prompts and baselines, computed on first use."""
        if not self._documents:
            self._documents = [self._prepare(row[None]) for row in self.ids]
        return self._documents

    def _prepare(self, ids: Tensor) -> _Document:
        prompt = exact_prompt(self.none.model, self.none.geometry, ids[:, : self.prefix])
        baseline = torch.cat(list(self._log_probabilities(self.none, ids, prompt)))
        with torch.no_grad():
            stock = self.none.model(ids, use_cache=False).logits[0, self.prefix : -1]
        floor = _kld(torch.log_softmax(stock.float(), -1), baseline)
        return _Document(ids, prompt, baseline, floor)

    def _score_document(self, arm: Arm, document: _Document) -> TokenScores:
        targets = document.ids[0, self.prefix + 1 :]
        parts: list[TokenScores] = []
        start = 0
        for found in self._log_probabilities(arm, document.ids, document.prompt):
            stop = start + len(found)
            parts.append(_compare(document.baseline[start:stop], found, targets[start:stop]))
            start = stop
        return TokenScores(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("kld", "nll", "same_top1"))
        )

    def _log_probabilities(self, arm: Arm, ids: Tensor, prompt: ExactPrompt):  # type: ignore[no-untyped-def]
        """Yield log-probabilities (tokens, vocabulary) for every token after the prefix that has a successor."""
        with arm.entered():
            cache = arm.fill(prompt)
            arm.teacher_forced(cache)
            for start in range(self.prefix, ids.shape[1] - 1, self.block):
                block = ids[:, start : min(start + self.block, ids.shape[1] - 1)]
                logits = arm.forward(block, cache)[0].float()
                if not bool(logits.isfinite().all()):
                    raise KvbenchError(f"{arm.name}: the model's logits are not finite; check its weights and dtype")
                yield torch.log_softmax(logits, -1)


def _compare(baseline: Tensor, found: Tensor, targets: Tensor) -> TokenScores:
    nll = -found.gather(1, targets[:, None])[:, 0].double()
    return TokenScores(_kld(baseline, found), nll, (baseline.argmax(-1) == found.argmax(-1)).double())


def _kld(baseline: Tensor, found: Tensor) -> Tensor:
    """KL(baseline ‖ found) per token, (tokens,) fp64, from log-probabilities (tokens, vocabulary)."""
    parts = []
    for start in range(0, len(baseline), CHUNK):
        p, q = baseline[start : start + CHUNK].double(), found[start : start + CHUNK].double()
        parts.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(parts)


def _pool(scores: list[TokenScores], documents: list[_Document]) -> Quality:
    baseline_nll = [
        -document.baseline.gather(1, document.ids[0, -len(document.baseline) :, None])[:, 0].double()
        for document in documents
    ]
    deltas = [score.nll - nll for score, nll in zip(scores, baseline_nll, strict=True)]
    kld = torch.cat([score.kld for score in scores])
    return Quality(
        documents=len(scores),
        tokens=len(kld),
        perplexity=math.exp(torch.cat([score.nll for score in scores]).mean()),
        baseline_perplexity=math.exp(torch.cat(baseline_nll).mean()),
        delta_nll=float(torch.cat(deltas).mean()),
        delta_nll_interval=cluster_bootstrap([delta.tolist() for delta in deltas]),
        kld_mean=float(kld.mean()),
        kld_median=float(kld.median()),
        kld_p99=float(kld.quantile(0.99)),
        kld_max=float(kld.max()),
        kld_interval=cluster_bootstrap([score.kld.tolist() for score in scores]),
        same_top1=float(torch.cat([score.same_top1 for score in scores]).mean()),
        noise_floor_kld=float(torch.cat([document.floor for document in documents]).mean()),
        per_document_kld=tuple(float(score.kld.mean()) for score in scores),
    )
