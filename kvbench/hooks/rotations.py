"""RoPE as model code takes it: cos and sin, or complex numbers, and the family's own function that applies it."""

from __future__ import annotations

import sys
from collections.abc import Callable
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


def as_pair(given: Any) -> Rotation | None:
    """cos and sin of the ``position_embeddings`` that a layer is given.

    Complex ones (1 or batch, tokens, rotary dims / 2) turn neighbouring dimensions, as in DeepSeek-V2.
    """
    if not isinstance(given, Tensor):
        return given  # type: ignore[no-any-return]
    if torch.compiler.is_compiling():  # a graph has no table to look into
        return _pair(given)
    if given not in _PAIRS:
        _PAIRS[given] = _pair(given)
    return _PAIRS[given]  # type: ignore[no-any-return]


def as_given(rotation: Rotation, given: Any) -> Any:
    """The inverse: ``rotation`` in the shape of what the layer was ``given``."""
    return _complex(rotation).to(given.dtype) if isinstance(given, Tensor) else rotation


def rotation_of(module: nn.Module) -> Apply:
    """The ``apply_rotary_pos_emb`` of the family of an attention ``module``."""
    family = sys.modules[type(module).__module__]
    if hasattr(family, "apply_rotary_pos_emb"):
        return family.apply_rotary_pos_emb  # type: ignore[no-any-return]
    return neighbours_turned if hasattr(family, "apply_rotary_emb") else halves_turned


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


def _pair(given: Tensor) -> Rotation:
    return given.real.repeat_interleave(2, -1), given.imag.repeat_interleave(2, -1)


def _complex(rotation: Rotation) -> Tensor:
    cos, sin = (part[..., ::2].float() if part.dtype.itemsize == 2 else part[..., ::2] for part in rotation)
    return torch.complex(cos, sin)
