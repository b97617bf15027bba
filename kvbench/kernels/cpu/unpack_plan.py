"""From packed words to 16 bytes-of-four-tokens at once: which bits of which words make a vector of columns.

A code of width w is the sum of fields of 4, 2 and 1 bits, each in a section (:mod:`kvbench.codecs.packing`). A
*slot* fetches one field of up to 16 columns: their words are permuted out of a window of 16, rotated to where the
field belongs, and masked. Codes with levels carry a bit 2^w above them, so that one table of 128 bytes holds the levels
of all widths up to 6; the upper half of the table holds their second bytes.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from kvbench.codecs.packing import Run
from kvbench.kernels.cpu.llvm.byte_ops import MOST_SLOTS
from kvbench.kernels.cpu.llvm.vectors import LANES, has_byte_permute

WIDEST = 6
_BYTES = 0x01010101
_FINE = 128
"""Where the table holds second bytes."""


class Column(NamedTuple):
    """One component's code of ``width`` bits, the ``number``-th of its run; ``fine``: the second byte of its level."""

    run: Run
    number: int
    fine: bool


@dataclass(frozen=True, eq=False)
class Plan:
    """``vectors`` (count, 4) int64: first column, first slot, slots, size of the part of the table that is used.

    ``windows`` (slots, 2) int64: first byte in a group, and words to read there. ``orders``
    (slots, 4, 16) uint32: words in the window, rotations of the first and of the second four tokens, masks. ``starts``
    (count, 16) uint32: bits above the codes.
    """

    vectors: Any
    windows: Any
    orders: Any
    starts: Any


@dataclass
class _Slot:
    base: int
    words: list[int] = field(default_factory=lambda: [0] * LANES)
    first: list[int] = field(default_factory=lambda: [0] * LANES)
    second: list[int] = field(default_factory=lambda: [0] * LANES)
    masks: list[int] = field(default_factory=lambda: [0] * LANES)

    @property
    def window(self) -> list[int]:
        """Its first byte in a group, and how many words it needs."""
        return [self.base, max(word for word, mask in zip(self.words, self.masks, strict=True) if mask) + 1]

    def takes(self, lane: int, byte: int) -> bool:
        """Whether the slot is free for a lane whose word lies at ``byte``."""
        place = byte - self.base
        return not self.masks[lane] and place % 4 == 0 and 0 <= place < 4 * LANES


def planned(columns: Sequence[Column], looked_up: bool) -> tuple[Plan, list[Run]]:
    """How to unpack ``columns``, and the runs for which that does not go, in order.

    These are codes wider than 6 bits, codes that do not fill whole words, runs so scattered that a vector would take
    more slots than there are, and all of them on processors that cannot permute bytes.
    """
    everything = list(dict.fromkeys(column.run for column in columns))
    slow = {run for run in everything if not (has_byte_permute() and _in_words(run))}
    while True:
        vectors = [_Vector(first, columns, slow) for first in range(0, len(columns), LANES)]
        crowded = {column.run for own in vectors if len(own.slots) > MOST_SLOTS for _, column in own.columns}
        if not crowded:
            return _plan([own for own in vectors if own.slots], looked_up), [run for run in everything if run in slow]
        slow |= crowded


class _Vector:
    """16 columns from ``first`` on, without those of ``slow`` runs: by lane, and the slots for their fields."""

    def __init__(self, first: int, columns: Sequence[Column], slow: Set[Run]) -> None:
        self.first = first
        own = enumerate(columns[first : first + LANES])
        self.columns = [(lane, column) for lane, column in own if column.run not in slow]
        self.slots = _slots(self.columns)

    def starts(self) -> list[int]:
        """The bits above each lane's code."""
        marks = [0] * LANES
        for lane, column in self.columns:
            marks[lane] = 2**column.run.width + _FINE * column.fine
        return marks


def _in_words(run: Run) -> bool:
    """Whether all codes of a run lie in whole words."""
    return run.width <= WIDEST and all(run.components * bits % 4 == 0 for bits in (4, 2, 1) if run.width & bits)


def _plan(vectors: Sequence[_Vector], looked_up: bool) -> Plan:
    slots = [slot for own in vectors for slot in own.slots]
    heads, first = [], 0
    for own in vectors:
        size = next(size for size in (64, 128, 256) if 2 * max(own.starts()) <= size or size == 256)
        heads.append([own.first, first, len(own.slots), size if looked_up else 0])
        first += len(own.slots)
    starts = [[mark * _BYTES * looked_up for mark in own.starts()] for own in vectors]
    orders = [[slot.words, slot.first, slot.second, slot.masks] for slot in slots]
    return Plan(
        np.array(heads, np.int64).reshape(-1, 4),
        np.array([slot.window for slot in slots], np.int64).reshape(-1, 2),
        np.array(orders, np.uint32).reshape(-1, 4, LANES),
        np.array(starts, np.uint32).reshape(-1, LANES),
    )


def table(levels: Any) -> Any:
    """Both bytes of the levels of all widths (256,) uint8, from those by width (9, 2, 256)."""
    both = np.zeros(256, np.uint8)
    for width in range(1, WIDEST + 1):
        for byte in range(2):
            both[_FINE * byte + 2**width :][: 2**width] = levels[width, byte, : 2**width]
    return both


def _slots(columns: Sequence[tuple[int, Column]]) -> list[_Slot]:
    """Slots for all fields of up to 16 columns, greedily."""
    slots: list[_Slot] = []
    places = sorted((place for lane, column in columns for place in _places(lane, column)), key=lambda own: own[1])
    for lane, byte, bits, part, shift in places:
        slot = next((own for own in slots if own.takes(lane, byte)), None)
        if slot is None:
            slot = _Slot(byte)
            slots.append(slot)
        slot.words[lane] = (byte - slot.base) // 4
        slot.first[lane] = (shift - 2 * bits * part) % 32
        slot.second[lane] = (shift - 2 * bits * part - bits) % 32
        slot.masks[lane] = ((2**bits - 1) << shift) * _BYTES
    return slots


def _places(lane: int, column: Column) -> list[tuple[int, int, int, int, int]]:
    """Per field: lane, byte of its word in a group, bits, which part of the word, and where it goes in the code."""
    run, number, _ = column
    places, byte = [], run.byte
    for bits in (4, 2, 1):
        if run.width & bits:
            words = run.components * bits // 4
            places.append((lane, byte + 4 * (number % words), bits, number // words, run.width & (bits - 1)))
            byte += run.components * bits
    return places
