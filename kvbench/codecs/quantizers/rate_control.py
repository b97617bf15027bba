"""Coding blocks into a fixed number of bytes: each with the finest step at which its indices fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvbench.codecs.quantizers.rans import HEADER, STREAMS, TOKENS, StreamLayout, Tables, encode, search

FINENESS = 256
"""The step of a block is the common step times 2^(exponent / FINENESS)."""
COARSEST = 64 * FINENESS
"""Largest exponent either way. At the coarsest step every index is zero, for latents are clipped to make it so."""
TOLERANCE = 2e-3
"""Share of the bits that may stay unused."""

_SLOPE = 1.3  # bits that an index which is not zero saves when the step doubles; measured
_LARGEST = 2.0 ** (COARSEST // FINENESS - 4)

Floats = NDArray[np.float32]


def capacity_for(bits: float) -> int:
    """Words that blocks of about ``bits`` in all take, coder states included."""
    return int(np.ceil(bits / 16)) + HEADER - STREAMS


def compress(
    latents: Floats, layout: StreamLayout, tables: Tables, words: NDArray[np.uint16], exponents: NDArray[np.int16]
) -> None:
    """Code ``latents`` (blocks, TOKENS, components), finite and in common steps.

    Fills in ``words`` (blocks, capacity) and ``exponents`` (blocks,). The capacity must hold a block of zeros.
    """
    scratch = np.empty(3 * latents[0].size, dtype=np.uint16)
    for block, block_latents in enumerate(latents):
        plain = block_latents.T.ravel().clip(-_LARGEST, _LARGEST)
        exponents[block] = _code(plain, layout, tables, words[block], scratch)


def _code(
    plain: Floats, layout: StreamLayout, tables: Tables, words: NDArray[np.uint16], scratch: NDArray[np.uint16]
) -> int:
    """Code one block (components · TOKENS,); the exponent of its step. Newton's method between two bounds."""
    indices = np.empty(len(plain), dtype=np.int32)
    target = 16 * (len(words) - HEADER + STREAMS)  # a state holds a word on average
    too_fine, fits, exponent = -COARSEST - 1, COARSEST + 1, 0
    while True:
        bits, active = search(plain * np.float32(2.0 ** (-exponent / FINENESS)), layout, tables, indices)
        if encode(indices, layout, tables, scratch, words) <= len(words):
            fits = exponent
            if target - bits <= TOLERANCE * target:
                return fits
        else:
            too_fine = exponent
        if fits - too_fine <= 1:
            return fits
        octaves = (bits - (1 - TOLERANCE / 2) * target) / max(_SLOPE * active, TOKENS)
        guess = exponent + round(octaves * FINENESS)
        exponent = min(max(guess, too_fine + 1), fits - 1)
