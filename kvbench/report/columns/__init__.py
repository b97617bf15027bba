"""The columns of every table. Terminal, Markdown and HTML draw from these: a number has one name, form and definition.

A new number is one entry in the file of its part; a new part is a file and one entry here.
"""

from __future__ import annotations

from kvbench.report.columns import memory, quality, speed
from kvbench.report.columns.column import Cell, Column, Trend

__all__ = ["DETAILS", "LESSER", "SUMMARY", "Cell", "Column", "Trend"]

DETAILS = {"memory": memory.COLUMNS, "speed": speed.COLUMNS, "quality": quality.COLUMNS}
"""Every number of a record, by the part of the record that holds it."""

SUMMARY = tuple(column for columns in DETAILS.values() for column in columns if column.summary)
"""Of every part what a reader asks first."""

LESSER = tuple(
    sorted(
        (column for columns in DETAILS.values() for column in columns if column.importance is not None),
        key=lambda column: column.importance or 0,
    )
)
"""Left out one after the other where a terminal is too narrow."""
