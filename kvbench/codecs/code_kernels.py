"""Between numbers, codes and packed bytes on the CPU, one pass each: numba kernels.

The layout is that of :mod:`kvbench.codecs.packing`, and so is what ``sections`` (sections, 7) int64 hold of each field
of a run: field, shift, first component, components in words, words, components in bytes of their own, first byte.

In torch every field of every run is some ten operations on tensors of a few kilobytes, which cost more than their work.
"""

from __future__ import annotations

import numpy as np

from kvbench.storage.kernel_cache import kernels_of

_kernel = kernels_of(__file__)

GROUP, QUAD = 8, 4


@_kernel(nogil=True)
def nearest_levels(numbers, codes, runs, grids, boundaries, below):  # type: ignore[no-untyped-def]
    """``numbers`` (tokens, components) fp32 → ``codes`` (tokens, components) uint8: how many boundaries are smaller.

    ``runs`` (runs, 5) int64: first component, components, where their ``boundaries`` begin, where their cells begin in
    ``below``, cells; ``grids`` (runs, 2) fp32: ``start`` and ``per_unit`` of their
    :class:`~kvbench.codecs.quantizers.level_grid.LevelGrid`.
    """
    for token in range(len(numbers)):
        x, out = numbers[token], codes[token]
        out[:] = 0
        for r in range(len(runs)):
            first, count, boundary, cell, cells = runs[r]
            start, per_unit, last = grids[r, 0], grids[r, 1], np.float32(cells - 1)
            for c in range(first, first + count):
                place = min(max((x[c] - start) * per_unit, np.float32(0)), last)
                smaller = below[cell + np.int32(place)]
                out[c] = smaller + np.uint8(x[c] > boundaries[boundary + smaller])


@_kernel(nogil=True)
def convert_groups(packed, codes, sections, packing):  # type: ignore[no-untyped-def]
    """``codes`` (groups, 8, components) uint8 → ``packed`` (groups, bytes) uint8, if ``packing``; else back."""
    for group in range(len(packed)):
        line, tokens = packed[group], codes[group]
        if packing:
            line[:] = 0
        else:
            tokens[:] = 0
        for s in range(len(sections)):
            field, shift, first, whole = sections[s, 0], np.uint8(sections[s, 1]), sections[s, 2], sections[s, 3]
            words, rest, byte = sections[s, 4], sections[s, 5], sections[s, 6]
            mask = np.uint8((1 << field) - 1)
            if field == GROUP:
                for token in range(GROUP):
                    start = byte + token // QUAD * whole * QUAD + token % QUAD
                    bits = np.uint8(0), mask, shift
                    _convert(line, start, QUAD, tokens[token], first, bits, whole, packing)
            else:
                for token in range(GROUP):
                    for member in range(QUAD // field if whole else 0):
                        bits = np.uint8((2 * member + token // QUAD) * field), mask, shift
                        start, numbers = byte + token % QUAD, first + member * words
                        _convert(line, start, QUAD, tokens[token], numbers, bits, words, packing)
            after, per_byte = byte + whole * field, GROUP // field
            for token in range(GROUP if rest else 0):
                bits, start = (np.uint8(token % per_byte * field), mask, shift), after + token // per_byte
                _convert(line, start, field, tokens[token], first + whole, bits, rest, packing)


@_kernel(nogil=True)
def _convert(line, start, step, codes, first, bits, count, packing):  # type: ignore[no-untyped-def]
    """Every ``step``-th byte of ``line`` from ``start`` holds a field of a code from ``first`` on.

    ``bits``: the field's place in the byte, its mask, and its place in the code.
    """
    place, mask, shift = bits
    for i in range(count):
        if packing:
            line[start + step * i] |= ((codes[first + i] >> shift) & mask) << place
        else:
            codes[first + i] |= ((line[start + step * i] >> place) & mask) << shift


@_kernel(nogil=True)
def scaled_levels(codes, out, levels, starts, scale):  # type: ignore[no-untyped-def]
    """``codes`` (tokens, components) uint8 → ``out`` of the same shape, fp32: levels times ``scale`` (components,).

    A component's levels begin at ``starts`` (components,) in ``levels``.
    """
    for token in range(len(codes)):
        for c in range(codes.shape[1]):
            out[token, c] = levels[starts[c] + codes[token, c]] * scale[c]
