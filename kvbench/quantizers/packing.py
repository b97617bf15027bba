"""Codes of 1 to 8 bits packed without waste, in a layout that unpacks with vector operations only.

A width is the sum of the fields of its binary representation (3 = 2 + 1, 5 = 4 + 1), and each field has a section of
its own: in the section of field size f, 8/f consecutive tokens share a byte. Eight tokens of a component of width w
thus take exactly w bytes, and unpacking is a shift and a mask per field, with no bit addressing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

TOKENS_PER_GROUP = 8
"""Packed tensors hold whole groups of this many tokens."""

_FIELDS = (8, 4, 2, 1)


@lru_cache(maxsize=4096)
def _sections(widths: tuple[int, ...]) -> tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]:
    """Per non-empty field: (field bits, columns that have it, how far the field sits above the code's lowest bit)."""
    sections = []
    for field in _FIELDS:
        columns = tuple(index for index, width in enumerate(widths) if width & field)
        shifts = tuple(widths[index] & (field - 1) for index in columns)
        if columns:
            sections.append((field, columns, shifts))
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
    lead = codes.shape[:-2]
    groups = tokens // TOKENS_PER_GROUP
    parts = []
    for field, columns, shifts in _sections(tuple(widths)):
        per_byte = 8 // field
        section = _select(codes, columns)
        section = (section >> _vector(shifts, codes.device)) & (2**field - 1)
        section = section.reshape(*lead, groups, field, per_byte, len(columns))
        places = torch.arange(per_byte, dtype=torch.uint8, device=codes.device) * field
        packed = (section << places[:, None]).sum(-2, dtype=torch.uint8)  # disjoint bits: the sum is an or
        parts.append(packed.reshape(*lead, groups, field * len(columns)))
    return torch.cat(parts, -1) if parts else codes.new_empty(*lead, groups, 0)


def unpack(packed: Tensor, widths: Sequence[int]) -> Tensor:
    """The inverse of :func:`pack`: (…, groups, Σ widths) → (…, groups · 8, components) uint8."""
    *lead, groups, _ = packed.shape
    tokens = groups * TOKENS_PER_GROUP
    sections = _sections(tuple(widths))
    whole = len(sections) == 1 and len(sections[0][1]) == len(widths)
    codes = None if whole else packed.new_zeros(*lead, tokens, len(widths))
    start = 0
    for field, columns, shifts in sections:
        per_byte, size = 8 // field, field * len(columns)
        section = packed[..., start : start + size].reshape(*lead, groups * field, 1, len(columns))
        start += size
        if per_byte > 1:
            places = torch.arange(per_byte, dtype=torch.uint8, device=packed.device) * field
            section = (section >> places[:, None]) & (2**field - 1)
        section = section.reshape(*lead, tokens, len(columns))
        if codes is None:
            return section
        section = section << _vector(shifts, packed.device)
        if columns == tuple(range(len(columns))):  # sorted widths: a slice instead of an index
            codes[..., : len(columns)] |= section
        else:
            codes[..., list(columns)] |= section
    return packed.new_zeros(*lead, tokens, len(widths)) if codes is None else codes


def _select(codes: Tensor, columns: tuple[int, ...]) -> Tensor:
    return codes if len(columns) == codes.shape[-1] else codes[..., list(columns)]


def _vector(shifts: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(shifts, dtype=torch.uint8, device=device)
