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

    ``half``: bytes to tokens 4-7 where they have words of their own. ``own``: components with bytes of their own.
    ``aligned``: words can be read as words. In a mixture the table has the rest.
    """

    field: int
    place: int
    byte: int
    shift: int
    half: int
    own: bool
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


Plan = tuple[Channel, ...]
"""What is compiled into a kernel: frozen dataclasses, the only records that Triton takes as constants."""


@lru_cache(maxsize=1024)
def plan(widths: tuple[int, ...], channel: int, aligned: bool) -> Plan:
    """Blocks of components of ``widths`` in channel groups of ``channel``; ``aligned``: groups start at whole words."""
    found = runs(widths)
    if len(found) > 1:
        blocks = _mixtures(widths, channel, aligned and all(run.components % 4 == 0 for run in found))
    else:
        blocks = [block for run in found for block in _blocks(run, channel, aligned)]
    channels = range(-(-len(widths) // channel))
    return tuple(Channel(tuple(block for block in blocks if block.first // channel == own)) for own in channels)


@lru_cache(maxsize=1024)
def table(widths: tuple[int, ...], device: torch.device) -> Tensor | None:
    """(17, rank) int32: widths, then by field byte, shift, place and whether bytes are its own; None: equal widths."""
    if len(runs(widths)) <= 1:
        return None
    rows = torch.zeros(17, len(widths), dtype=torch.int32)
    rows[0] = torch.tensor(widths)
    for run in runs(widths):
        fields = _fields_of(run.width)
        for index in range(run.components):
            for section in _sections(run, fields, index, False):
                row = 1 + 4 * _FIELDS.index(section.field)
                entry = section.byte, section.shift, section.place, int(section.own)
                rows[row : row + 4, run.first + index] = torch.tensor(entry, dtype=torch.int32)
                if section.half:
                    rows[row + 2, run.first + index] = section.half
    return rows.to(device)


def _fields_of(width: int) -> list[int]:
    return [field for field in _FIELDS if width & field]


def _mixtures(widths: tuple[int, ...], channel: int, aligned: bool) -> list[Block]:
    """Blocks of adjacent components, whatever their widths, within a channel group."""
    found = []
    for begin in range(0, len(widths), channel):
        for start in range(begin, min(begin + channel, len(widths)), _MOST):
            own = widths[start : min(start + _MOST, begin + channel)]
            used = [field for field in _FIELDS if any(width & field for width in own)]
            sections = tuple(Section(field, 0, 0, 0, 0, False, aligned) for field in used)
            size = max(LEAST, 1 << (len(own) - 1).bit_length())
            found.append(Block(0, start, len(own), size, sections))
    return found


def _blocks(run: Run, channel: int, aligned: bool) -> list[Block]:
    """One run, cut where a section goes to its next shift or a channel group ends, then into powers of two."""
    fields = _fields_of(run.width)
    cuts = {0, run.components, *range(-run.first % channel, run.components, channel)}
    for field in fields:
        words = run.components // max(1, 4 // field)
        cuts.update(range(words, run.components, words) if words else ())
    found = []
    for start, stop in pairwise(sorted(cuts)):
        while start < stop:
            size = max(LEAST, min(_MOST, 1 << (stop - start).bit_length() - 1))
            count = min(size, stop - start)
            found.append(Block(run.width, run.first + start, count, size, _sections(run, fields, start, aligned)))
            start += count
    return found


def _sections(run: Run, fields: list[int], start: int, aligned: bool) -> tuple[Section, ...]:
    """Where the fields of a block lie whose first component is ``start`` in its run."""
    found, byte = [], run.byte
    for field in fields:
        shared = max(1, 4 // field)
        words = run.components // shared
        own = start >= words * shared
        at = byte + (field * start if own else 4 * (start % words))
        shift = 0 if own else start // words * 2 * field
        half = 4 * run.components if field == 8 else 0
        found.append(Section(field, run.width & (field - 1), at, shift, half, own, aligned and not own and at % 4 == 0))
        byte += run.components * field
    return tuple(found)
