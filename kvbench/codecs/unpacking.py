"""From packed bytes to codes and from codes to levels on the CPU, one pass each: numba kernels.

The layout is that of :mod:`kvbench.codecs.packing`.

In torch every field of every run is some ten operations on tensors of a few kilobytes, which cost more than their work.
"""

from __future__ import annotations

import numpy as np

from kvbench.storage.kernel_cache import kernels_of

_kernel = kernels_of(__file__)

GROUP, QUAD = 8, 4


@_kernel(nogil=True)
def unpack_groups(packed, sections, codes):  # type: ignore[no-untyped-def]
    """``packed`` (groups, bytes) uint8 → ``codes`` (groups, 8, components) uint8.

    ``sections`` (sections, 7) int64 holds what ``packing`` knows of each field of a run: field, shift, first component,
    components in words, words, components in bytes of their own, first byte.
    """
    for group in range(len(packed)):
        line, out = packed[group], codes[group]
        out[:] = 0
        for s in range(len(sections)):
            field, shift, first, whole = sections[s, 0], np.uint8(sections[s, 1]), sections[s, 2], sections[s, 3]
            words, rest, byte = sections[s, 4], sections[s, 5], sections[s, 6]
            mask = np.uint8((1 << field) - 1)
            if field == GROUP:
                for token in range(GROUP):
                    start = byte + token // QUAD * whole * QUAD + token % QUAD
                    _spread(line[start:], np.uint8(0), mask, shift, out[token, first:], whole)
            else:
                for token in range(GROUP):
                    for member in range(QUAD // field if whole else 0):
                        place = np.uint8((2 * member + token // QUAD) * field)
                        to = first + member * words
                        _spread(line[byte + token % QUAD :], place, mask, shift, out[token, to:], words)
            start, per_byte = byte + whole * field, GROUP // field
            for c in range(rest):
                for token in range(GROUP):
                    place = np.uint8(token % per_byte * field)
                    bits = (line[start + c * field + token // per_byte] >> place) & mask
                    out[token, first + whole + c] |= bits << shift


@_kernel(nogil=True)
def _spread(line, place, mask, shift, out, count):  # type: ignore[no-untyped-def]
    """Every fourth byte of ``line`` is one token's: its field at ``place`` is added to ``out``."""
    for i in range(count):
        out[i] |= ((line[QUAD * i] >> place) & mask) << shift


@_kernel(nogil=True)
def scaled_levels(codes, levels, starts, scale, out):  # type: ignore[no-untyped-def]
    """``codes`` (tokens, components) uint8 → ``out`` of the same shape, fp32: levels times ``scale`` (components,).

    A component's levels begin at ``starts`` (components,) in ``levels``.
    """
    for token in range(len(codes)):
        for c in range(codes.shape[1]):
            out[token, c] = levels[starts[c] + codes[token, c]] * scale[c]
