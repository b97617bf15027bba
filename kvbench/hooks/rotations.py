"""RoPE as model code takes it: cos and sin, or complex numbers, and the family's own function that applies it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

Rotation = tuple[Tensor, Tensor]
"""cos and sin, each (1 or batch, tokens, rotary dims)."""

Apply = Callable[..., tuple[Tensor, Tensor]]
"""(queries, keys, cos, sin) → both rotated."""

_PAIRS = WeakTensorKeyDictionary()
"""Rotations already taken apart: all layers of a forward pass are given the same tensor, and get the same pair."""


def as_pair(given: Any, halves: bool = False) -> Rotation | None:
    """cos and sin of the ``position_embeddings`` that a layer is given.

    Complex ones (1 or batch, tokens, rotary dims / 2) turn neighbouring dimensions, as in DeepSeek-V2. ``halves``: cos
    and sin are as narrow (:func:`takes_halves`).
    """
    if not isinstance(given, Tensor) and not halves:
        return given  # type: ignore[no-any-return]
    if torch.compiler.is_compiling():  # a graph has no table to look into
        return _pair(given)
    key = given if isinstance(given, Tensor) else given[0]
    if key not in _PAIRS:
        _PAIRS[key] = _pair(given)
    return _PAIRS[key]  # type: ignore[no-any-return]


def as_given(rotation: Rotation, given: Any) -> Any:
    """The inverse: ``rotation`` in the shape of what the layer was ``given``."""
    if isinstance(given, Tensor):
        return _complex(rotation).to(given.dtype)
    width = given[0].shape[-1]
    return rotation[0][..., :width], rotation[1][..., :width]


def rotation_of(module: nn.Module) -> Apply:
    """The ``apply_rotary_pos_emb`` of the family of an attention ``module``."""
    family = sys.modules[type(module).__module__]
    if hasattr(family, "apply_rotary_pos_emb"):
        apply = _of_both(family.apply_rotary_pos_emb)
        return _of_whole(apply) if _halves(apply) else apply
    return neighbours_turned if hasattr(family, "apply_rotary_emb") else halves_turned


@lru_cache(maxsize=64)
def _of_both(apply: Callable[..., Any]) -> Apply:
    """``apply`` for queries and keys, where it takes one of them at a time: (states, cos, sin), as Gemma 3n does."""
    if list(inspect.signature(apply).parameters)[1] != "cos":
        return apply
    return lambda query, keys, cos, sin: (apply(query, cos, sin), apply(keys, cos, sin))


def takes_halves(module: nn.Module) -> bool:
    """Whether the family of an attention ``module`` hands it cos and sin of half the rotated width, as gpt-oss does."""
    family = sys.modules[type(module).__module__]
    return hasattr(family, "apply_rotary_pos_emb") and _halves(_of_both(family.apply_rotary_pos_emb))


@lru_cache(maxsize=64)
def _halves(apply: Apply) -> bool:
    return not _turns(apply, 4) and _turns(apply, 2)


def _turns(apply: Apply, width: int) -> bool:
    """Whether ``apply`` takes cos and sin of ``width`` for four dimensions."""
    states, table = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, width)
    try:
        return apply(states, states, table, table)[0].shape == states.shape
    except (RuntimeError, IndexError, TypeError, ValueError):
        return False


@lru_cache(maxsize=64)
def _of_whole(apply: Apply) -> Apply:
    """``apply`` with cos and sin of the whole width, of which it takes the first half."""

    def applied(query: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        half = cos.shape[-1] // 2
        return apply(query, keys, cos[..., :half], sin[..., :half])

    return applied


def halves_turned(query: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """RoPE of dimension i with i + d/2.

    Families whose weights lie in pairs of neighbours sort them into halves while they rotate
    (``apply_rotary_pos_emb_interleave``), so it also turns what they have rotated.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned = [
        torch.cat([-states[..., states.shape[-1] // 2 :], states[..., : states.shape[-1] // 2]], -1)
        for states in (query, keys)
    ]
    return query * cos + turned[0] * sin, keys * cos + turned[1] * sin


def neighbours_turned(query: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """RoPE of dimension 2i with 2i + 1, which model code multiplies by complex numbers."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned = [torch.stack([-states[..., 1::2], states[..., ::2]], -1).flatten(-2) for states in (query, keys)]
    return query * cos + turned[0] * sin, keys * cos + turned[1] * sin


def _pair(given: Any) -> Rotation:
    if not isinstance(given, Tensor):
        return torch.cat([given[0]] * 2, -1), torch.cat([given[1]] * 2, -1)
    return given.real.repeat_interleave(2, -1), given.imag.repeat_interleave(2, -1)


def _complex(rotation: Rotation) -> Tensor:
    cos, sin = (part[..., ::2].float() if part.dtype.itemsize == 2 else part[..., ::2] for part in rotation)
    return torch.complex(cos, sin)
