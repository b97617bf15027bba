"""Continuations of a batch, each until it is done."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Cache

from kvbench.cache.cache import CompressedCache
from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.models.loading import LoadedModel

Pick = Callable[[Tensor, list[int], int], Tensor]
"""The next tokens (rows,) of logits (rows, vocabulary), the rows' numbers and the step."""


def likeliest(logits: Tensor, rows: list[int], step: int) -> Tensor:
    """Greedy decoding."""
    return logits.argmax(-1)


@dataclass(frozen=True)
class SharedNoise:
    """Samples at ``temperature`` with noise that depends on ``seed``, row and step alone: two arms whose distributions
    agree draw the same tokens (Gumbel-max with common random numbers)."""

    temperature: float
    seed: int

    def __call__(self, logits: Tensor, rows: list[int], step: int) -> Tensor:
        """As :data:`Pick`."""
        noise = torch.stack([self._gumbel(logits.shape[-1], row, step) for row in rows]).to(logits.device)
        return (logits.float() / self.temperature + noise).argmax(-1)

    def _gumbel(self, vocabulary: int, row: int, step: int) -> Tensor:
        digest = hashlib.sha256(f"{self.seed} {row} {step}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return -torch.empty(vocabulary).exponential_(generator=generator).log()


def last_tokens(loaded: LoadedModel) -> set[int]:
    """Tokens that end an answer: the tokenizer's, and those that the model's own generation stops at."""
    config = loaded.model.generation_config
    tokens = None if config is None else config.eos_token_id
    given = [*(tokens if isinstance(tokens, list) else [tokens]), loaded.tokenizer.eos_token_id]
    return {token for token in given if token is not None}


@dataclass(frozen=True)
class Stop:
    """A row is done after ``most`` tokens, after one of ``last``, or once ``enough`` of its number and tokens holds."""

    most: int
    last: set[int]
    enough: Callable[[int, list[int]], bool] = field(default=lambda row, tokens: False)
    failed: set[int] | None = None
    """Takes in the rows whose logits are not finite, which end there; None: the first of them ends everything."""


def decode_batch(
    arm: Arm,
    cache: Cache,
    ids: Tensor,
    stop: Stop,
    pick: Pick = likeliest,
    each_step: Callable[[int, int], None] = lambda step, rows: None,
) -> list[list[int]]:
    """The tokens that follow ``ids`` (rows, tokens), row by row, without the one of ``stop.last`` at their end.

    Done rows leave the batch whenever half of it is done, so that the cache is copied seldom; caches of transformers,
    of which not all can drop rows, keep them. ``each_step`` is called with the step and the rows that the cache holds.

    Raises:
        KvbenchError: the model's logits are not finite, of any row or, with ``stop.failed``, of all.
    """
    texts: list[list[int]] = [[] for _ in ids]
    batch, open_rows = list(range(len(ids))), set(range(len(ids)))
    for step in range(stop.most):
        logits = arm.forward(ids, cache, logits_to_keep=1)[:, -1]
        finite = logits.isfinite().all(-1).tolist()
        if not all(finite) and stop.failed is None:
            raise _not_finite(arm)
        each_step(step, len(batch))
        new = pick(logits, batch, step)
        for row, token, good in zip(batch, new.tolist(), finite, strict=True):
            if row not in open_rows:
                continue
            if not good and stop.failed is not None:
                stop.failed.add(row)
                open_rows.discard(row)
                continue
            if token not in stop.last:
                texts[row].append(token)
            if token in stop.last or stop.enough(row, texts[row]):
                open_rows.discard(row)
        if not open_rows:
            break
        if isinstance(cache, CompressedCache) and 2 * len(open_rows) <= len(batch):
            places = torch.tensor([place for place, row in enumerate(batch) if row in open_rows], device=ids.device)
            cache.batch_select_indices(places)
            batch, new = [batch[place] for place in places.tolist()], new[places]
        ids = new[:, None]
    if stop.failed is not None and len(stop.failed) == len(texts):
        raise _not_finite(arm)
    return texts


def _not_finite(arm: Arm) -> KvbenchError:
    return KvbenchError(f"{arm.name}: the model's logits are not finite; check its weights and dtype")
