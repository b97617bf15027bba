"""How a compressed layer divides its context, and in which dtype it keeps what stays exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvbench.errors import KvbenchError

ExactDtype = Literal["model", "float16", "bfloat16"]


@dataclass(frozen=True)
class Spans:
    """How a layer divides its context. ``recent`` and ``block`` in tokens; ``block`` leave the window at a time.

    ``exact`` is the dtype that sinks and window are stored in; "model" is the dtype that the model runs in.
    """

    sinks: int = 4
    recent: int = 64
    block: int = 32
    exact: ExactDtype = "model"

    def boundary(self, tokens: int, first: int = 0) -> int:
        """Slots [0, boundary) have left the tail once ``tokens`` are cached; sinks end at slot ``first`` + sinks.

        Zero while that is not enough for the sinks of every row.
        """
        leaving = tokens - self.sinks - self.recent
        if leaving < 0:
            return 0
        boundary = self.sinks + leaving // self.block * self.block
        return boundary if boundary >= first + self.sinks else 0

    def dtype(self, model: torch.dtype) -> torch.dtype:
        """The dtype of the exact spans in a model that runs in ``model``."""
        return {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(self.exact, model)


def stored_as(states: Tensor, dtype: torch.dtype) -> Tensor:
    """``states`` rounded to ``dtype``, or ``states`` themselves if they have it.

    Raises:
        KvbenchError: a finite value lies beyond float16's range. Every other dtype reaches as far as float32.
    """
    if states.dtype == dtype:
        return states
    rounded = states.to(dtype)
    if dtype == torch.float16 and not bool(rounded.isfinite().all()):
        _require_range(states, rounded)
    return rounded


def _require_range(states: Tensor, rounded: Tensor) -> None:
    """What was not finite before is not this dtype's doing; codecs refuse it."""
    if bool((rounded.isinf() & states.isfinite()).any()):
        raise beyond_float16()


def beyond_float16() -> KvbenchError:
    """The error for exact tokens that float16 has no number for."""
    return KvbenchError(
        f"keys or values of exact tokens lie beyond {torch.finfo(torch.float16).max:g}, where exact=float16 ends; "
        "store them with exact=bfloat16"
    )
