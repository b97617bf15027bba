"""From packed words to 16 bytes-of-four-tokens at once: which bits of which words make a vector of columns.

A code of width w is the sum of fields of 4, 2 and 1 bits, each in a section (:mod:`kvbench.codecs.packing`). A
*slot* fetches one field of up to 16 columns: their words are permuted out of a window of 16, rotated to where the
field belongs, and masked. Codes with levels are looked up in a table of the vector. Columns that share it, all 16 or
four (:mod:`kvbench.kernels.cpu.llvm.unpack_ops`), may differ in width: a code's highest bits say where the levels of
its width begin.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from kvbench.codecs.packing import Run
from kvbench.kernels.cpu.llvm.unpack_ops import MOST_SLOTS, columns_of_a_table, table_parts
from kvbench.kernels.cpu.llvm.vectors import LANES
from kvbench.kernels.cpu.records import UnpackVector

WIDEST = 6
"""Levels of all widths up to this, with their second bytes, fit one table."""
_BYTES = 0x01010101


class Column(NamedTuple):
    """One component's code of ``width`` bits, the ``number``-th of its run; ``fine``: the second byte of its level."""

    run: Run
    number: int
    fine: bool


@dataclass(frozen=True, eq=False)
class ColumnPlan:
    """``vectors`` (count, 4) int64: an :class:`~kvbench.kernels.cpu.records.UnpackVector` each.

    ``windows`` (slots, 2) int64: first byte in a group, and words to read there. ``orders``
    (slots, 4, 16) uint32: words in the window, rotations of the first and of the second four tokens, masks. ``starts``
    (count, 16) uint32: bits above the codes. ``tables`` (parts, 64) uint8 of all vectors, one after the other.
    """

    vectors: Any
    windows: Any
    orders: Any
    starts: Any
    tables: Any


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


class _Field(NamedTuple):
    """``bits`` of one lane's code: the ``byte`` of its word in a group, which ``part`` of the word, and the ``shift``
    to where it goes in the code."""

    lane: int
    byte: int
    bits: int
    part: int
    shift: int


def plan_columns(columns: Sequence[Column], levels: Any) -> tuple[ColumnPlan, list[Run]]:
    """How to unpack ``columns``, and the runs for which that does not go, in order.

    These are codes wider than 6 bits, codes that do not fill whole words, runs so scattered that a vector would take
    more slots than there are, and all of them on processors that cannot permute bytes. ``levels`` (9, 2, 256) uint8:
    both bytes of the levels by width; None for codes that are numbers themselves.
    """
    all_runs = list(dict.fromkeys(column.run for column in columns))
    left_out = {run for run in all_runs if not (columns_of_a_table() and _in_words(run))}
    while True:
        vectors = [_Vector(first, columns, left_out) for first in range(0, len(columns), LANES)]
        crowded = {column.run for vector in vectors if len(vector.slots) > MOST_SLOTS for _, column in vector.columns}
        if not crowded:
            used = [vector for vector in vectors if vector.slots]
            return _plan(used, levels), [run for run in all_runs if run in left_out]
        left_out |= crowded


class _Vector:
    """16 columns from ``first`` on, without those of runs ``left_out``: by lane, and the slots for their fields."""

    def __init__(self, first: int, columns: Sequence[Column], left_out: Set[Run]) -> None:
        self.first = first
        lanes = enumerate(columns[first : first + LANES])
        self.columns = [(lane, column) for lane, column in lanes if column.run not in left_out]
        self.slots = _slots(self.columns)

    def table(self, levels: Any) -> tuple[list[int], Any]:
        """Where each lane's levels begin among the entries of its table (16,), and the tables' parts (parts, 64)."""
        sharing = columns_of_a_table()
        starts, tables = [0] * LANES, []
        for first in range(0, LANES, sharing):
            entries: list[int] = []
            begins: dict[tuple[int, bool], int] = {}
            together = [(lane, column) for lane, column in self.columns if first <= lane < first + sharing]
            for _, (run, _, fine) in sorted(together, key=lambda each: -each[1].run.width):  # begins are multiples
                if (run.width, fine) not in begins:
                    begins[run.width, fine] = len(entries)
                    entries += levels[run.width, int(fine), : 2**run.width].tolist()
            for lane, (run, _, fine) in together:
                starts[lane] = begins[run.width, fine]
            tables.append(entries)
        longest = max(len(entries) for entries in tables)
        parts = next(parts for parts in table_parts() if 4 * sharing * parts >= longest)
        filled = np.zeros((len(tables), 4 * sharing * parts), np.uint8)
        for row, entries in zip(filled, tables, strict=True):
            row[: len(entries)] = entries
        return starts, filled.reshape(len(tables), parts, 4 * sharing).swapaxes(0, 1).reshape(parts, 4 * LANES)


def _in_words(run: Run) -> bool:
    """Whether all codes of a run lie in whole words."""
    return run.width <= WIDEST and all(run.components * bits % 4 == 0 for bits in (4, 2, 1) if run.width & bits)


def _plan(vectors: Sequence[_Vector], levels: Any) -> ColumnPlan:
    records, starts, tables = [], [], np.zeros((0, 4 * LANES), np.uint8)
    first_slot = 0
    for vector in vectors:
        begins, table = ([0] * LANES, tables[:0]) if levels is None else vector.table(levels)
        records.append(UnpackVector(vector.first, first_slot, len(vector.slots), len(tables), len(table)))
        starts.append([begin * _BYTES for begin in begins])
        tables = np.concatenate([tables, table])
        first_slot += len(vector.slots)
    slots = [slot for vector in vectors for slot in vector.slots]
    orders = [[slot.words, slot.first, slot.second, slot.masks] for slot in slots]
    return ColumnPlan(
        np.array(records, np.int64).reshape(-1, len(UnpackVector._fields)),
        np.array([slot.window for slot in slots], np.int64).reshape(-1, 2),
        np.array(orders, np.uint32).reshape(-1, 4, LANES),
        np.array(starts, np.uint32).reshape(-1, LANES),
        tables,
    )


def _slots(columns: Sequence[tuple[int, Column]]) -> list[_Slot]:
    """Slots for all fields of up to 16 columns, greedily."""
    slots: list[_Slot] = []
    fields = sorted((each for lane, column in columns for each in _fields(lane, column)), key=lambda each: each.byte)
    for lane, byte, bits, part, shift in fields:
        slot = next((each for each in slots if each.takes(lane, byte)), None)
        if slot is None:
            slot = _Slot(byte)
            slots.append(slot)
        slot.words[lane] = (byte - slot.base) // 4
        slot.first[lane] = (shift - 2 * bits * part) % 32
        slot.second[lane] = (shift - 2 * bits * part - bits) % 32
        slot.masks[lane] = ((2**bits - 1) << shift) * _BYTES
    return slots


def _fields(lane: int, column: Column) -> list[_Field]:
    run, number, _ = column
    fields, byte = [], run.byte
    for bits in (4, 2, 1):
        if run.width & bits:
            words = run.components * bits // 4
            fields.append(_Field(lane, byte + 4 * (number % words), bits, number // words, run.width & (bits - 1)))
            byte += run.components * bits
    return fields
