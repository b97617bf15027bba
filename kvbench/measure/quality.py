"""Quality: how far the compressed model's predictions are from the uncompressed model's.

A document's prefix is prefilled and compressed; the rest is teacher-forced through the cache in blocks that attend as
if decoded token by token, and scored. KLD is mean KL(uncompressed ‖ compressed) per scored token in nats (the
conventions of llama.cpp's ``--kl-divergence``); the uncompressed side is ``none`` run the same way, once per document
(:mod:`kvbench.measure.document`). The noise floor is ``none`` against the stock model's plain forward pass.

Blocks attend in plain torch. With ``decode`` the first scored tokens of every document are also decoded one by one,
through the kernels, and both ways stand side by side (:mod:`kvbench.measure.decoded`).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kvbench.measure.arms import Arm
from kvbench.measure.decoded import DecodedScores, pooled, score_decoded
from kvbench.measure.document import Document, predictions, prepare, targets_of
from kvbench.measure.parts.quality import QualityResult
from kvbench.measure.results import Interval
from kvbench.measure.statistics import MEAN_METHOD, mean_interval
from kvbench.measure.token_statistics import TokenScores, token_statistics
from kvbench.storage.kept import kept

DISTRIBUTION_BYTES = 4 << 30
"""Distributions of the uncompressed model kept in memory; those of further documents are made from their states for
each compressor."""


@dataclass(frozen=True)
class DocumentScores:
    """One document: every scored token, and the first of them decoded one by one."""

    tokens: TokenScores
    decoded: DecodedScores | None = None


@dataclass
class QualityBench:
    """Documents (count, length) with their shared baseline; :meth:`score` measures one arm against it.

    The first ``decode`` scored tokens of each are also decoded one by one. ``identity`` tells apart all that the
    baseline depends on beside the tokens (weights, code, dtype, device, threads): under it prompts and baselines are
    kept on disk; where it is empty they are not.
    """

    none: Arm
    ids: Tensor
    prefix: int
    block: int
    document_ids: tuple[str, ...] = ()
    decode: int = 0
    identity: str = ""
    _documents: list[Document] = field(default_factory=list)

    def score(self, arm: Arm) -> QualityResult:
        """Teacher-force every document through ``arm``.

        Raises:
            KvbenchError: the model's logits are not finite.
        """
        scores = [self._score_document(arm, document) for document in self.documents()]
        return _pool(scores, self.documents(), self.document_ids)

    def documents(self) -> list[Document]:
        """The documents with prompts and baselines, computed or read from disk on first use."""
        if not self._documents:
            scored = self.ids.shape[1] - 1 - self.prefix
            size = 4 * scored * self.none.model.config.get_text_config().vocab_size
            for row in self.ids:
                document = self._document(row[None])
                if (len(self._documents) + 1) * size <= DISTRIBUTION_BYTES:
                    document = replace(document, states=tuple(document.baseline()), output=None)
                self._documents.append(document)
        return self._documents

    def _document(self, ids: Tensor) -> Document:
        def make() -> Document:
            return prepare(self.none, ids, self.prefix, self.block)

        if not self.identity:
            return make()
        key = [self.identity, self.prefix, self.block, hashlib.sha256(ids.cpu().numpy().tobytes()).hexdigest()]
        return Document.of(ids, self.none.model, kept(key, lambda: make().contents()))

    def _score_document(self, arm: Arm, document: Document) -> DocumentScores:
        ids, prompt = document.ids, document.prompt
        parts: list[TokenScores] = []
        first: list[tuple[Tensor, Tensor]] = []
        blocks = predictions(arm, ids, prompt, self.block)
        for before, after, targets in zip(
            document.baseline(), blocks, targets_of(ids, self.prefix, self.block), strict=True
        ):
            parts.append(TokenScores.of(before, after, targets))
            if len(first) * self.block < self.decode:
                first.append((before, after))
        decoded = None
        if self.decode:
            before, after = (torch.cat(each)[: self.decode] for each in zip(*first, strict=True))
            fed = ids[:, self.prefix : self.prefix + self.decode]
            decoded = score_decoded(arm, prompt, fed, before, after)
        return DocumentScores(TokenScores.joined(parts), decoded)


def _pool(documents: list[DocumentScores], baseline: list[Document], document_ids: tuple[str, ...]) -> QualityResult:
    scores = [document.tokens for document in documents]
    before = [document.nll for document in baseline]
    deltas = [score.nll - nll for score, nll in zip(scores, before, strict=True)]
    every = TokenScores.joined(scores)
    per_document = tuple(float(score.kld.mean()) for score in scores)
    decoded = [document.decoded for document in documents if document.decoded]
    return QualityResult(
        documents=len(scores),
        tokens=len(every.kld),
        perplexity=math.exp(every.nll.mean()),
        baseline_perplexity=math.exp(torch.cat(before).mean()),
        delta_nll=float(torch.cat(deltas).mean()),
        delta_nll_interval=Interval.of(mean_interval([float(delta.mean()) for delta in deltas])),
        kld_mean=float(every.kld.mean()),
        kld_median=float(every.kld.median()),
        kld_p99=float(every.kld.quantile(0.99)),
        kld_max=float(every.kld.max()),
        kld_interval=Interval.of(_not_negative(mean_interval(per_document))),
        interval_method=MEAN_METHOD,
        same_top1=float(every.same_top1.mean()),
        noise_floor_kld=float(torch.cat([document.floor for document in baseline]).mean()),
        per_document_kld=per_document,
        document_ids=document_ids,
        statistics=token_statistics(scores, before),
        decoded=pooled(decoded) if decoded else None,
    )


def _not_negative(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """The part of the interval where a KLD can lie."""
    return interval and (max(interval[0], 0.0), interval[1])
