"""Exact tokens in the dtype that they are stored in."""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.cache.spans import ExactDtype
from kvbench.errors import KvbenchError


def exact_dtype(exact: ExactDtype, model: torch.dtype) -> torch.dtype:
    """The dtype of exact tokens in a model that runs in ``model``."""
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(exact, model)


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
        f"keys or values of exact tokens lie beyond {torch.finfo(torch.float16).max:g}, where float16 ends; "
        "store them in bfloat16 (exact=bfloat16)"
    )
