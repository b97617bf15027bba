"""Continuations of batches, each row until it is done.

Batches of several caches are continued together, so that a step reads the model's weights once for all of them: while
rows of one batch end, the next begin. Caches of transformers, which cannot share a step, are continued one by one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from kvbench.cache.cache import CompressedCache
from kvbench.cache.one_step import CachesOfOneStep, can_share_a_step
from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.measure.sampling import Pick, likeliest
from kvbench.models.loading import LoadedModel

BYTES_AT_ONCE = 2 << 30
"""Batches join a step while their caches stay within this; a larger one is continued alone."""


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


@dataclass
class Batch:
    """Rows that continue ``cache``, first by ``ids`` (rows, tokens), then by what ``pick`` chooses.

    ``texts`` are the new tokens, row by row, without the one of ``stop.last`` at their end. Done rows leave the batch
    whenever half of it is done, so that the cache is copied seldom; caches of transformers, of which not all can drop
    rows, keep them. ``each_step`` is called with the step and the rows that the cache holds; ``label`` is the caller's.
    """

    cache: Cache
    ids: Tensor
    stop: Stop
    pick: Pick = likeliest
    each_step: Callable[[int, int], None] = lambda step, rows: None
    label: Any = None
    texts: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = [[] for _ in self.ids]
        self._rows, self._open = list(range(len(self.ids))), set(range(len(self.ids)))
        self._step = self._row_bytes = 0

    @property
    def done(self) -> bool:
        """Whether every row is."""
        return not self._open or self._step >= self.stop.most

    @property
    def nbytes(self) -> int:
        """Bytes of the cache's rows, as large as they were in the beginning; 0 for caches of transformers."""
        return self._row_bytes * len(self._rows)

    def begin(self, arm: Arm) -> None:
        """The first new token of every row; errors as in :meth:`take`."""
        logits = arm.forward(self.ids, self.cache, logits_to_keep=1)[:, -1]
        if isinstance(self.cache, CompressedCache):
            self._row_bytes = self.cache.nbytes().total // len(self._rows)
        self.take(logits, arm)

    def take(self, logits: Tensor, arm: Arm) -> None:
        """Go on by the next tokens' ``logits`` (rows, vocabulary).

        Raises:
            KvbenchError: they are not finite, of any row or, with ``stop.failed``, of all that there were.
        """
        finite = logits.isfinite().all(-1).tolist()
        if not all(finite) and self.stop.failed is None:
            raise _not_finite(arm)
        self.each_step(self._step, len(self._rows))
        new = self.pick(logits, self._rows, self._step)
        for row, token, good in zip(self._rows, new.tolist(), finite, strict=True):
            if row in self._open:
                self._take_token(row, token, good)
        if self.stop.failed is not None and len(self.stop.failed) == len(self.texts):
            raise _not_finite(arm)
        self._step += 1
        self.ids = self._without_done_rows(new)[:, None]

    def _take_token(self, row: int, token: int, good: bool) -> None:
        if not good and self.stop.failed is not None:
            self.stop.failed.add(row)
            self._open.discard(row)
            return
        if token not in self.stop.last:
            self.texts[row].append(token)
        if token in self.stop.last or self.stop.enough(row, self.texts[row]):
            self._open.discard(row)

    def _without_done_rows(self, new: Tensor) -> Tensor:
        """``new``, of which the rows that are done leave with their cache."""
        if self.done or 2 * len(self._open) > len(self._rows) or not isinstance(self.cache, CompressedCache):
            return new
        places = torch.tensor([place for place, row in enumerate(self._rows) if row in self._open], device=new.device)
        self.cache.batch_select_indices(places)
        self._rows = [self._rows[place] for place in places.tolist()]
        return new[places]


def decode_batches(arm: Arm, batches: Iterable[Batch], bytes_at_once: int = BYTES_AT_ONCE) -> Iterator[Batch]:
    """Continue all of ``batches`` through ``arm``, which is entered; each is given back when it is done.

    Raises:
        KvbenchError: as :meth:`Batch.take`.
    """
    running = list[Batch]()
    for batch in batches:
        batch.begin(arm)
        alone, room = not _steps_can_be_shared(arm, batch.cache), bytes_at_once - batch.nbytes
        running.append(batch)
        yield from _taken_out(running)
        while running and (alone or sum(each.nbytes for each in running) > room):
            _one_step(arm, running)
            yield from _taken_out(running)
    while running:
        _one_step(arm, running)
        yield from _taken_out(running)


def decode_batch(arm: Arm, batch: Batch) -> list[list[int]]:
    """The new tokens of one batch; errors as in :func:`decode_batches`."""
    return next(decode_batches(arm, [batch])).texts


def _one_step(arm: Arm, running: list[Batch]) -> None:
    """The next token of every row."""
    if len(running) == 1:
        running[0].take(arm.forward(running[0].ids, running[0].cache, logits_to_keep=1)[:, -1], arm)
        return
    together = CachesOfOneStep([batch.cache for batch in running if isinstance(batch.cache, CompressedCache)])
    ids = torch.cat([batch.ids for batch in running])
    positions = together.positions(ids.device)
    logits = arm.forward(ids, together, logits_to_keep=1, position_ids=positions)[:, -1]
    for batch, rows in zip(running, together.rows, strict=True):
        batch.take(logits[rows], arm)


def _taken_out(running: list[Batch]) -> list[Batch]:
    """Those that are done, which leave ``running``."""
    done = [batch for batch in running if batch.done]
    running[:] = [batch for batch in running if not batch.done]
    return done


def _steps_can_be_shared(arm: Arm, cache: Cache) -> bool:
    """Whether rows of ``cache`` may stand beside others: the model is told positions, the cache takes part."""
    return can_share_a_step(cache) and "position_ids" in inspect.signature(arm.model.forward).parameters


def _not_finite(arm: Arm) -> KvbenchError:
    return KvbenchError(f"{arm.name}: the model's logits are not finite; check its weights and dtype")
