"""Where codes lie, for Triton kernels: blocks of components that are unpacked alike.

A :class:`Block` is read as a power of two of columns. Components of equal widths are cut so that in every section (see
:mod:`kvbench.codecs.packing`) a block lies in neighbouring words at one shift: all places are known when a kernel
is compiled. Where widths differ, a table on the device says where each component lies: slower, but one kernel for all
mixtures, where otherwise every layer of a model would need one of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from kvbench.codecs.packing import Run, runs

LEAST = 16
"""Fewest columns, rows or tokens that a matrix product of tensor cores takes."""

_MOST = 128
_FIELDS = (8, 4, 2, 1)


@dataclass(frozen=True)
class Section:
    """``field`` bits to be shifted by ``place`` in the code, in words from ``byte`` of a group on, behind ``shift``.

    ``half``: bytes to tokens 4-7 where they have words of their own. ``bytewise``: the components are in bytes that no
    others share. ``aligned``: words can be read as words. In a mixture the table has the rest.
    """

    field: int
    place: int
    byte: int
    shift: int
    half: int
    bytewise: bool
    aligned: bool


@dataclass(frozen=True)
class Block:
    """``count`` components from ``first`` on, read as ``size`` columns of ``width`` bits; 0: as the table says."""

    width: int
    first: int
    count: int
    size: int
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Channel:
    """The blocks of a channel group."""

    blocks: tuple[Block, ...]


SidePlan = tuple[Channel, ...]
"""How one side is unpacked: frozen dataclasses, the only records that Triton takes as constants."""


@dataclass(frozen=True)
class Dims:
    """``count`` dimensions of rebuilt keys, read as ``size`` columns of their decoder from each of ``firsts`` on.

    Two for both of RoPE's pairs, one for dimensions that are not rotated.
    """

    firsts: tuple[int, ...]
    count: int
    size: int


@dataclass(frozen=True)
class Program:
    """What is compiled into a kernel: how sides are unpacked, ``rows`` of queries and ``tile`` token groups per tile.

    ``precise``: queries and weights are fp16 in two parts. ``absorbs``: queries meet the keys' codes, anew every
    ``block`` of tokens (0: once); a tile has ``phases`` of those. ``dims`` are the dimensions of keys that are rebuilt.
    """

    rows: int
    tile: int
    keys: SidePlan
    values: SidePlan
    precise: bool
    absorbs: bool
    block: int
    phases: int
    dims: tuple[Dims, ...]


@lru_cache(maxsize=1024)
def plan(widths: tuple[int, ...], channel: int, aligned: bool) -> SidePlan:
    """Blocks of components of ``widths`` in channel groups of ``channel``; ``aligned``: groups start at whole words."""
    of_one_width = runs(widths)
    if len(of_one_width) > 1:
        blocks = _mixtures(widths, channel, aligned and all(run.components % 4 == 0 for run in of_one_width))
    else:
        blocks = [block for run in of_one_width for block in _blocks(run, channel, aligned)]
    channels = range(-(-len(widths) // channel))
    return tuple(Channel(tuple(block for block in blocks if block.first // channel == index)) for index in channels)


@lru_cache(maxsize=1024)
def table(widths: tuple[int, ...], device: torch.device) -> Tensor | None:
    """(17, rank) int32: widths, then by field byte, shift, place and whether it is bytewise; None: equal widths."""
    if len(runs(widths)) <= 1:
        return None
    rows = torch.zeros(17, len(widths), dtype=torch.int32)
    rows[0] = torch.tensor(widths)
    for run in runs(widths):
        fields = _fields_of(run.width)
        for index in range(run.components):
            for section in _sections(run, fields, index, False):
                row = 1 + 4 * _FIELDS.index(section.field)
                entry = section.byte, section.shift, section.place, int(section.bytewise)
                rows[row : row + 4, run.first + index] = torch.tensor(entry, dtype=torch.int32)
                if section.half:
                    rows[row + 2, run.first + index] = section.half
    return rows.to(device)


def _fields_of(width: int) -> list[int]:
    return [field for field in _FIELDS if width & field]


def _mixtures(widths: tuple[int, ...], channel: int, aligned: bool) -> list[Block]:
    """Blocks of adjacent components, whatever their widths, within a channel group."""
    blocks = []
    for begin in range(0, len(widths), channel):
        for start in range(begin, min(begin + channel, len(widths)), _MOST):
            mixed = widths[start : min(start + _MOST, begin + channel)]
            used = [field for field in _FIELDS if any(width & field for width in mixed)]
            sections = tuple(Section(field, 0, 0, 0, 0, False, aligned) for field in used)
            size = max(LEAST, 1 << (len(mixed) - 1).bit_length())
            blocks.append(Block(0, start, len(mixed), size, sections))
    return blocks


def _blocks(run: Run, channel: int, aligned: bool) -> list[Block]:
    """One run, cut where a section goes to its next shift or a channel group ends, then into powers of two."""
    fields = _fields_of(run.width)
    cuts = {0, run.components, *range(-run.first % channel, run.components, channel)}
    for field in fields:
        words = run.components // max(1, 4 // field)
        cuts.update(range(words, run.components, words) if words else ())
    blocks = []
    for start, stop in pairwise(sorted(cuts)):
        while start < stop:
            size = max(LEAST, min(_MOST, 1 << (stop - start).bit_length() - 1))
            count = min(size, stop - start)
            blocks.append(Block(run.width, run.first + start, count, size, _sections(run, fields, start, aligned)))
            start += count
    return blocks


def _sections(run: Run, fields: list[int], start: int, aligned: bool) -> tuple[Section, ...]:
    """Where the fields of a block lie whose first component is ``start`` in its run."""
    sections, byte = [], run.byte
    for field in fields:
        shared = max(1, 4 // field)
        words = run.components // shared
        bytewise = start >= words * shared
        at = byte + (field * start if bytewise else 4 * (start % words))
        shift = 0 if bytewise else start // words * 2 * field
        half = 4 * run.components if field == 8 else 0
        words_at_words = aligned and not bytewise and at % 4 == 0
        sections.append(Section(field, run.width & (field - 1), at, shift, half, bytewise, words_at_words))
        byte += run.components * field
    return tuple(sections)
