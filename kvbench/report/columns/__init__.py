"""The columns of every table. Terminal, Markdown and HTML draw from these: a number has one name, form and definition.

A new number is one entry in the file of its part; a new part is a file with ``COLUMNS``, and a ``LEGEND`` if symbols in
them need one.
"""

from __future__ import annotations

from importlib import import_module

from kvbench.measure.parts import PARTS
from kvbench.report.columns.column import Cell, Column, Trend

__all__ = ["DETAILS", "LEGENDS", "LESSER", "SUMMARY", "Cell", "Column", "Trend"]

_FILES = {part: import_module(f"{__name__}.{part}") for part in reversed(PARTS)}

DETAILS: dict[str, tuple[Column, ...]] = {part: file.COLUMNS for part, file in _FILES.items()}
"""Every number of a record, by the part of the record that holds it: what is measured last comes first."""

LEGENDS: dict[str, str] = {part: file.LEGEND for part, file in _FILES.items() if hasattr(file, "LEGEND")}
"""What symbols in the columns of a part mean, in one line."""

SUMMARY = tuple(column for columns in DETAILS.values() for column in columns if column.summary)
"""Of every part what a reader asks first."""

LESSER = tuple(
    sorted(
        (column for columns in DETAILS.values() for column in columns if column.importance is not None),
        key=lambda column: column.importance or 0,
    )
)
"""Left out one after the other where a terminal is too narrow."""
