"""What a selector is: it decides which of the tokens that leave the recent window are kept.

Tokens that are not kept are never encoded, so their memory is really gone. Every KV head keeps tokens of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvbench.hooks.applied import AppliedRotation

OBSERVED = 256
"""Most queries, from the newest back, that a selector may look at: what is kept of a prompt that is loaded later."""

_LEAST = 1 / 64


@dataclass(frozen=True)
class Observed:
    """Queries of a forward pass, by which a selector may score tokens.

    ``query`` (batch, heads, new tokens, head_dim) after RoPE, which ``applied`` is, None without RoPE; ``scaling`` of
    their scores.
    """

    query: Tensor
    scaling: float
    applied: AppliedRotation | None = None

    def at(self, token: int) -> Observed:
        """That of one of the pass's tokens alone."""
        applied = None if self.applied is None else self.applied.at(token)
        return replace(self, query=self.query[:, :, token : token + 1], applied=applied)

    def newest(self) -> Observed:
        """No more of them than a selector may look at; the rotation is still that of the whole pass."""
        return replace(self, query=self.query[:, :, -OBSERVED:])


@dataclass(frozen=True)
class Leaving:
    """The tokens that leave the exact window, and the exact tokens around them.

    ``keys`` (batch, kv heads, tokens, head_dim) after RoPE and ``values`` alike are the exact tokens from slot
    ``start`` to the newest one; those at ``begin`` … ``end`` − 1 of them leave. ``observed`` are the queries of the
    pass that made them leave and end with the newest token too. ``first`` (batch,) is the slot of each row's first
    real token, None without padding. Right after a prompt the exact tokens are the whole context; while decoding they
    are the recent window.
    """

    keys: Tensor
    values: Tensor
    observed: Observed
    start: int
    begin: int
    end: int
    first: Tensor | None = None

    @property
    def candidates(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens that leave."""
        return self.keys[:, :, self.begin : self.end], self.values[:, :, self.begin : self.end]

    @property
    def leaving_queries(self) -> int:
        """How many of the queries are as old as the tokens that leave; the oldest one counts whatever its age."""
        return max(1, self.observed.query.shape[2] - (self.keys.shape[2] - self.end))

    def slots(self) -> Tensor:
        """(candidates,): the slots of the tokens that leave."""
        return torch.arange(self.start + self.begin, self.start + self.end, device=self.keys.device)


@dataclass(frozen=True)
class Budget:
    """How many of a body's tokens stay per KV head: a ``share`` in [0, 1] of them, and never more than ``most``.

    With ``keep_decoded`` that holds for the prompt, the first tokens that leave the window together; later ones all
    stay.
    """

    share: float = 1.0
    most: int | None = None
    keep_decoded: bool = False

    def kept(self, tokens: int, block: int) -> int:
        """How many of ``tokens`` are kept: whole blocks of the codec."""
        kept = int(tokens * self.share)
        return (kept if self.most is None else min(kept, self.most)) // block * block

    def leaving(self, block: int) -> int:
        """Tokens that must leave together for a block of the codec to be kept of them."""
        return block if self.share == 0 else block * math.ceil(1 / max(self.share, _LEAST))


@dataclass(frozen=True)
class Selector(ABC):
    """Keeps ``budget`` of the body's tokens; with a share of 0 no scores are computed."""

    judges_heads: ClassVar[bool] = True
    """Whether scores come from keys, values or queries of heads, which multi-head latent attention does not store."""

    budget: Budget

    @abstractmethod
    def scores(self, leaving: Leaving) -> Tensor:
        """Importance (batch, kv heads, candidates), higher is kept."""

    def tensors(self) -> list[Tensor]:
        """Model-level tensors that scoring needs."""
        return []

    def __deepcopy__(self, memo: dict[int, Any]) -> Selector:
        """A selector is shared: copying a cache must not copy what belongs to the model."""
        return self


def pick(selector: Selector, leaving: Leaving, count: int, sinks: int, together: bool) -> Tensor:
    """Which ``count`` candidates stay: indices (batch, kv heads, count), ascending.

    Padding and the rows' own ``sinks`` come last. ``together`` makes all heads of a row keep the same tokens, by their
    mean score: a basis over several heads must see one token in all of them. Where all stay, none is scored.
    """
    batch, kv_heads = leaving.keys.shape[:2]
    if count == leaving.end - leaving.begin:
        return torch.arange(count, device=leaving.keys.device).expand(batch, kv_heads, -1)
    scores = selector.scores(leaving)
    if together:
        scores = scores.mean(1, keepdim=True).expand_as(scores)
    if leaving.first is not None:
        barred = leaving.slots() < (leaving.first + sinks)[:, None, None]
        scores = scores.masked_fill(barred, -math.inf)
    return scores.topk(count, -1).indices.sort(-1).values
