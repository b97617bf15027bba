"""Quality: how far the compressed model's predictions are from the uncompressed model's.

A document's prefix is prefilled and compressed; the rest is teacher-forced through the cache in blocks that attend as
if decoded token by token, and scored. KLD is mean KL(uncompressed ‖ compressed) per scored token in nats (the
conventions of llama.cpp's ``--kl-divergence``); the uncompressed side is ``none`` run the same way, computed once per
document while memory allows. The noise floor is ``none`` against the stock model's plain forward pass.

Blocks attend in plain torch. With ``decode`` the first scored tokens of every document are also decoded one by one,
through the kernels, and both ways stand side by side (:mod:`kvbench.measure.decoded`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.measure.decoded import Decoded, DecodedScores, score_decoded
from kvbench.measure.divergence import divergence
from kvbench.measure.prompt import ExactPrompt, exact_prompt
from kvbench.measure.statistics import MEAN_METHOD, mean_interval

FLOOR = 256
"""Tokens at a document's end that the noise floor is measured on: a whole plain pass has gigabytes of logits."""
HELD_BYTES = 2 << 30
"""Baseline distributions kept for all compressors; those of further documents are computed again for each."""


@dataclass(frozen=True)
class TokenScores:
    """Per scored token of one document: KLD against the baseline, negative log-likelihood, same top-1."""

    kld: Tensor
    nll: Tensor
    same_top1: Tensor
    decoded: DecodedScores | None = None


@dataclass(frozen=True)
class Quality:
    """Pooled over documents of one length; 95 % intervals of what documents like these give on average, from one value
    a document (:func:`kvbench.measure.statistics.mean_interval`). See the module for what is scored."""

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
    interval_method: str
    same_top1: float
    noise_floor_kld: float
    per_document_kld: tuple[float, ...]
    document_ids: tuple[str, ...]
    """The documents, in the order of ``per_document_kld``; empty where the bench was given none."""
    decoded: Decoded | None = None
    """The first tokens of every document decoded one by one, where that was asked for."""


@dataclass(frozen=True)
class _Document:
    ids: Tensor
    prompt: ExactPrompt
    nll: Tensor
    """Negative log-likelihood of the scored tokens under ``none``, fp64."""
    floor: Tensor
    """KLD of ``none`` against the stock forward pass, per token of the document's end."""
    baseline: list[Tensor] | None
    """Log-probabilities (block, vocabulary) of ``none``, fp32; None where they are too large to keep."""


@dataclass
class QualityBench:
    """Documents (count, length) with their shared baseline; :meth:`score` measures one arm against it.

    The first ``decode`` scored tokens of each are also decoded one by one.
    """

    none: Arm
    ids: Tensor
    prefix: int
    block: int
    document_ids: tuple[str, ...] = ()
    decode: int = 0
    _documents: list[_Document] = field(default_factory=list)

    def score(self, arm: Arm) -> Quality:
        """Teacher-force every document through ``arm``.

        Raises:
            KvbenchError: the model's logits are not finite.
        """
        scores = [self._score_document(arm, document) for document in self.documents()]
        return _pool(scores, self.documents(), self.document_ids)

    def documents(self) -> list[_Document]:
        """The documents with prompts and baselines, computed on first use."""
        if not self._documents:
            scored = self.ids.shape[1] - 1 - self.prefix
            size = 4 * scored * self.none.model.config.get_text_config().vocab_size
            self._documents = [
                self._prepare(row[None], keep=(index + 1) * size <= HELD_BYTES) for index, row in enumerate(self.ids)
            ]
        return self._documents

    def _prepare(self, ids: Tensor, keep: bool) -> _Document:
        model = self.none.model
        prompt = exact_prompt(model, self.none.geometry, ids[:, : self.prefix])
        with torch.no_grad():
            stock = model(ids[:, :-1], use_cache=False, logits_to_keep=FLOOR).logits[0]
        nll, kept, end = [], [], stock[:0].float()
        for found, targets in zip(self._blocks(self.none, ids, prompt), self._targets(ids), strict=True):
            nll.append(_nll(found, targets))
            end = torch.cat([end, found])[-FLOOR:]
            if keep:
                kept.append(found)
        floor = divergence(torch.log_softmax(stock[-len(end) :].float(), -1), end)
        return _Document(ids, prompt, torch.cat(nll), floor, kept if keep else None)

    def _score_document(self, arm: Arm, document: _Document) -> TokenScores:
        ids, prompt = document.ids, document.prompt
        baseline = self._blocks(self.none, ids, prompt) if document.baseline is None else document.baseline
        parts: list[TokenScores] = []
        first: list[tuple[Tensor, Tensor]] = []
        for before, after, targets in zip(baseline, self._blocks(arm, ids, prompt), self._targets(ids), strict=True):
            same = (before.argmax(-1) == after.argmax(-1)).double()
            parts.append(TokenScores(divergence(before, after), _nll(after, targets), same))
            if len(first) * self.block < self.decode:
                first.append((before, after))
        decoded = None
        if self.decode:
            before, after = (torch.cat(blocks)[: self.decode] for blocks in zip(*first, strict=True))
            fed = ids[:, self.prefix : self.prefix + self.decode]
            decoded = score_decoded(arm, prompt, fed, before, after)
        kld, nll, same_top1 = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("kld", "nll", "same_top1")
        )
        return TokenScores(kld, nll, same_top1, decoded)

    def _targets(self, ids: Tensor) -> tuple[Tensor, ...]:
        """The tokens that are predicted, block by block: each is the successor of the token fed."""
        return ids[0, self.prefix + 1 :].split(self.block)

    def _blocks(self, arm: Arm, ids: Tensor, prompt: ExactPrompt) -> Iterator[Tensor]:
        """Yield log-probabilities (block, vocabulary) for every token after the prefix that has a successor.

        The model is stock between two blocks: arms can take turns, and one that fails leaves no hooks behind.
        """
        with arm.entered():
            cache = arm.fill(prompt)
        arm.teacher_forced(cache)
        for block in ids[:, self.prefix : -1].split(self.block, dim=1):
            with arm.entered():
                logits = arm.forward(block, cache)[0].float()
            if not bool(logits.isfinite().all()):
                raise KvbenchError(f"{arm.name}: the model's logits are not finite; check its weights and dtype")
            yield torch.log_softmax(logits, -1)


def _nll(found: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood (tokens,) fp64 of ``targets`` (tokens,) under log-probabilities (tokens, vocabulary)."""
    return -found.gather(1, targets[:, None])[:, 0].double()


def _pool(scores: list[TokenScores], documents: list[_Document], document_ids: tuple[str, ...]) -> Quality:
    baseline_nll = [document.nll for document in documents]
    deltas = [score.nll - nll for score, nll in zip(scores, baseline_nll, strict=True)]
    kld = torch.cat([score.kld for score in scores])
    per_document = tuple(float(score.kld.mean()) for score in scores)
    return Quality(
        documents=len(scores),
        tokens=len(kld),
        perplexity=math.exp(torch.cat([score.nll for score in scores]).mean()),
        baseline_perplexity=math.exp(torch.cat(baseline_nll).mean()),
        delta_nll=float(torch.cat(deltas).mean()),
        delta_nll_interval=mean_interval([float(delta.mean()) for delta in deltas]),
        kld_mean=float(kld.mean()),
        kld_median=float(kld.median()),
        kld_p99=float(kld.quantile(0.99)),
        kld_max=float(kld.max()),
        kld_interval=_not_negative(mean_interval(per_document)),
        interval_method=MEAN_METHOD,
        same_top1=float(torch.cat([score.same_top1 for score in scores]).mean()),
        noise_floor_kld=float(torch.cat([document.floor for document in documents]).mean()),
        per_document_kld=per_document,
        document_ids=document_ids,
        decoded=Decoded.pooled([score.decoded for score in scores if score.decoded]) if scores[0].decoded else None,
    )


def _not_negative(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """The part of the interval where a KLD can lie."""
    return interval and (max(interval[0], 0.0), interval[1])
