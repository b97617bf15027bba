"""Stored tensors of both sides in one flat dict, and the tokens in them."""

from __future__ import annotations

from kvbench.codecs.quantizers.base import Stored

TILE = 1024
"""Tokens decoded at once while attending: the body is never expanded as a whole."""


def prefixed(name: str, stored: Stored) -> Stored:
    """The stored tensors of one side under its name; the inverse of :func:`side`."""
    return {f"{name}.{key}": tensor for key, tensor in stored.items()}


def side(stored: Stored, name: str) -> Stored:
    """The stored tensors of ``name`` ("keys" or "values"), without the prefix."""
    prefix = name + "."
    return {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}


def span(stored: Stored, tokens: int, start: int, stop: int) -> Stored:
    """Tokens [start, stop) of ``stored``, which holds ``tokens``; bounds are multiples of the codec's block."""
    if start == 0 and stop == tokens:
        return stored
    return {
        name: tensor[:, :, start * tensor.shape[2] // tokens : stop * tensor.shape[2] // tokens]
        for name, tensor in stored.items()
    }


def tiles(tokens: int, block: int) -> list[tuple[int, int]]:
    """(first, last) of the tiles of ``tokens``, cut at multiples of ``block``."""
    step = max(block, TILE // block * block)
    return [(start, min(start + step, tokens)) for start in range(0, tokens, step)]
