"""Codes of 1 to 8 bits packed without waste, in the layout that the decode kernels read.

Components of equal width stand side by side in *runs*. A width is the sum of the fields of its binary representation
(3 = 2 + 1, 5 = 4 + 1), and each field of a run has a section of its own, so eight tokens of a component of width w take
exactly w bytes. Within a section four tokens of one component fill a 32-bit word (a *quad*), in which tokens 0-3, then
4-7, of ``4 // field`` components lie side by side: unpacking a word is a shift and a mask and yields a quad of bytes,
the operand of a four-way dot product (AVX512-VNNI, ``dp4a``). Components that fill no whole word end the section.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvbench.codecs.in_parts import in_parts

TOKENS_PER_GROUP = 8
"""Packed tensors hold whole groups of this many tokens."""

_QUAD = 4
_FIELDS = (8, 4, 2, 1)


class Run(NamedTuple):
    """``components`` adjacent ones of one ``width`` > 0: the ``first`` of them, and the first ``byte`` in a group."""

    width: int
    first: int
    components: int
    byte: int


class _Section(NamedTuple):
    """One field of a run: ``whole`` components in words, ``words`` of them, the rest in bytes of their own."""

    field: int
    shift: int
    first: int
    whole: int
    words: int
    rest: int
    byte: int


@lru_cache(maxsize=4096)
def runs(widths: tuple[int, ...]) -> tuple[Run, ...]:
    """The runs of equal widths, in order."""
    result, first, byte = [], 0, 0
    for width, members in groupby(widths):
        count = len(list(members))
        if width:
            result.append(Run(width, first, count, byte))
        first += count
        byte += width * count
    return tuple(result)


@lru_cache(maxsize=4096)
def _sections(widths: tuple[int, ...]) -> tuple[_Section, ...]:
    sections = []
    for width, first, count, byte in runs(widths):
        for field in _FIELDS:
            if width & field:
                shared = max(1, _QUAD // field)
                whole = count // shared * shared
                words = whole * field // _QUAD
                sections.append(_Section(field, width & (field - 1), first, whole, words, count - whole, byte))
                byte += count * field
    return tuple(sections)


def packed_bytes(widths: Sequence[int]) -> int:
    """Bytes that :data:`TOKENS_PER_GROUP` tokens of these widths take."""
    return sum(widths)


def pack(codes: Tensor, widths: Sequence[int]) -> Tensor:
    """Pack ``codes`` (…, tokens, components) uint8, tokens a multiple of 8, into (…, tokens / 8, Σ widths) uint8.

    Raises:
        ValueError: the tokens are no multiple of 8, a width is not in 0…8, or widths and components differ.
    """
    tokens, components = codes.shape[-2:]
    if tokens % TOKENS_PER_GROUP:
        raise ValueError(f"packing needs a multiple of {TOKENS_PER_GROUP} tokens, got {tokens}")
    if len(widths) != components or any(not 0 <= width <= 8 for width in widths):
        raise ValueError(f"packing needs one width in 0..8 per component ({components}), got {list(widths)}")
    packed = codes.new_empty(*codes.shape[:-2], tokens // TOKENS_PER_GROUP, packed_bytes(widths))
    if codes.device.type == "cpu" and not torch.compiler.is_compiling():
        from kvbench.codecs.code_kernels import convert_groups

        groups = codes.contiguous().unflatten(-2, (-1, TOKENS_PER_GROUP)).flatten(0, -3)
        lines = packed.flatten(0, -2).numpy()
        in_parts(convert_groups, (lines, groups.numpy()), _section_table(tuple(widths)), True)
        return packed
    groups = codes.unflatten(-2, (tokens // TOKENS_PER_GROUP, TOKENS_PER_GROUP)).transpose(-1, -2)
    for section in _sections(tuple(widths)):
        _pack_section(groups, packed, section)
    return packed


def unpack(packed: Tensor, widths: Sequence[int]) -> Tensor:
    """The inverse of :func:`pack`: (…, groups, Σ widths) → (…, groups · 8, components) uint8."""
    if packed.device.type == "cpu" and not torch.compiler.is_compiling():
        return _unpack_on_cpu(packed, tuple(widths))
    codes = packed.new_zeros(*packed.shape[:-1], TOKENS_PER_GROUP, len(widths))
    for section in _sections(tuple(widths)):
        _unpack_section(packed, codes, section)
    return codes.flatten(-3, -2)


def _unpack_on_cpu(packed: Tensor, widths: tuple[int, ...]) -> Tensor:
    from kvbench.codecs.code_kernels import convert_groups

    codes = packed.new_empty(*packed.shape[:-1], TOKENS_PER_GROUP, len(widths))
    lines = packed.contiguous().flatten(0, -2).numpy()
    in_parts(convert_groups, (lines, codes.flatten(0, -3).numpy()), _section_table(widths), False)
    return codes.flatten(-3, -2)


@lru_cache(maxsize=4096)
def _section_table(widths: tuple[int, ...]) -> NDArray[np.int64]:
    return np.array(_sections(widths), np.int64).reshape(-1, len(_Section._fields))


def _pack_section(groups: Tensor, packed: Tensor, section: _Section) -> None:
    """``groups`` (…, components, 8 tokens)."""
    field, shift, first, whole, words, rest, byte = section
    mask = 2**field - 1
    if whole:
        # (…, components of a word, words, halves, 4 tokens); disjoint bits: the sum is an or
        codes = ((groups[..., first : first + whole, :] >> shift) & mask).unflatten(-1, (2, _QUAD))
        if field == 8:
            quads = codes.transpose(-2, -3)  # the first half of all components, then the second
        else:
            codes = codes.unflatten(-3, (whole // words, words))
            quads = (codes << _places(field, whole // words, codes.device)).sum((-4, -2), dtype=torch.uint8)
        packed[..., byte : byte + whole * field] = quads.flatten(-3 if field == 8 else -2)
    if rest:
        last = first + whole
        codes = ((groups[..., last : last + rest, :] >> shift) & mask).unflatten(-1, (field, 8 // field))
        steps = torch.arange(8 // field, dtype=torch.uint8, device=codes.device) * field
        start = byte + whole * field
        packed[..., start : start + rest * field] = (codes << steps).sum(-1, dtype=torch.uint8).flatten(-2)


def _unpack_section(packed: Tensor, codes: Tensor, section: _Section) -> None:
    """``codes`` (…, 8 tokens, components) receive one field."""
    field, shift, first, whole, words, rest, byte = section
    mask = 2**field - 1
    if whole:
        quads = packed[..., byte : byte + whole * field]
        if field == 8:
            parts = quads.unflatten(-1, (2, whole, _QUAD)).transpose(-2, -3)
        else:
            shared = quads.unflatten(-1, (1, words, 1, _QUAD))
            parts = ((shared >> _places(field, whole // words, packed.device)) & mask).flatten(-4, -3)
        codes[..., first : first + whole] |= parts.flatten(-2).transpose(-1, -2) << shift
    if rest:
        last, start = first + whole, byte + whole * field
        shared = packed[..., start : start + rest * field].unflatten(-1, (rest, field, 1))
        steps = torch.arange(8 // field, dtype=torch.uint8, device=packed.device) * field
        parts = ((shared >> steps) & mask).flatten(-2).transpose(-1, -2)
        codes[..., last : last + rest] |= parts << shift


def _places(field: int, shared: int, device: torch.device) -> Tensor:
    """(components of a word, 1, halves, 1): where in a byte each of them lies."""
    return (torch.arange(2 * shared, dtype=torch.uint8, device=device) * field).view(shared, 1, 2, 1)
