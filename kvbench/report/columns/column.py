"""What a column is: how a number of a record is shown, how it sorts, and what it means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from kvbench.report.numbers import fixed, mebibytes, short
from kvbench.runs.records import Record


class Trend(Enum):
    """How a speed-up's whole interval lies to 1: a symbol and a word, so that colour is never alone."""

    FASTER = "▲"
    SLOWER = "▼"
    SAME = "≈"

    @property
    def word(self) -> str:
        """For people who hear the table."""
        return {"▲": "faster", "▼": "slower", "≈": "no clear difference"}[self.value]


@dataclass(frozen=True)
class Cell:
    """One number of a table. ``sort`` is the number itself, None for a word; ``spread`` its interval, or empty."""

    text: str
    sort: float | None
    spread: str = ""
    trend: Trend | None = None


@dataclass(frozen=True)
class Column:
    """``title`` may have several lines; ``description`` is a definition. ``cell`` gives None where a record has no such
    number.

    ``summary``: it stands in the summary beside those of other parts. Where a terminal is too narrow, columns are left
    out from the least ``importance`` on; those without one stay.
    """

    title: str
    description: str
    cell: Callable[[Record], Cell | None]
    summary: bool = False
    importance: int | None = None

    @property
    def heading(self) -> str:
        """The title in one line."""
        return self.title.replace("/\n", "/").replace("\n", " ")


def plain(value: float | None, form: Callable[[float], str]) -> Cell | None:
    """``value`` as ``form`` writes it."""
    return None if value is None else Cell(form(value), value)


def percent(share: float) -> str:
    """A share, 0…1, in per cent with one decimal."""
    return f"{100 * share:.1f}"


def two_decimals(value: float) -> str:
    """With two decimals."""
    return fixed(value, 2)


def mebibyte_cell(count: int | None) -> Cell | None:
    """Bytes, shown as MiB."""
    return None if count is None else Cell(mebibytes(count), count)


def milliseconds(seconds: float) -> Cell:
    """Seconds, shown as milliseconds."""
    return Cell(short(seconds * 1e3), seconds)
