"""Rows of texts in columns for a terminal of any width: lines break between words and after commas, not within them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

GAP = 2
"""Spaces between columns."""


@dataclass(frozen=True)
class Listing:
    """A table: column titles, its rows, the titles of columns whose texts stand on the right, and of rows to dim."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[str] = frozenset()
    dim: frozenset[int] = field(default_factory=frozenset)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Titles stand directly above their rows."""
        columns = [*zip(self.columns, *self.rows, strict=True)]
        longest = [max(map(len, column)) for column in columns]
        shortest = [max(map(_longest_piece, column)) for column in columns]
        widths = shared(longest, shortest, options.max_width - GAP * (len(columns) - 1))
        titles = [broken(title, width) for title, width in zip(self.columns, widths, strict=True)]
        height = max(map(len, titles))
        yield from self._lines([[""] * (height - len(title)) + title for title in titles], widths, "bold")
        for index, row in enumerate(self.rows):
            cells = [broken(text, width) for text, width in zip(row, widths, strict=True)]
            yield from self._lines(cells, widths, "dim" if index in self.dim else "")

    def _lines(self, cells: Sequence[Sequence[str]], widths: Sequence[int], style: str) -> Iterable[Text]:
        for parts in zip_longest(*cells, fillvalue=""):
            placed = [
                part.rjust(width) if title in self.right else part.ljust(width)
                for title, part, width in zip(self.columns, parts, widths, strict=True)
            ]
            yield Text((" " * GAP).join(placed).rstrip(), style=style, no_wrap=True, overflow="crop")


def shared(longest: Sequence[int], shortest: Sequence[int], room: int) -> list[int]:
    """Widths of columns in ``room`` characters: each at least its longest piece where that fits, none more than its
    longest text.

    >>> shared([10, 40, 90], [10, 8, 12], 80)
    [10, 35, 35]
    """
    widths = [*shortest]
    while sum(widths) > max(room, len(widths)):
        widths[widths.index(max(widths))] -= 1
    for _ in range(room - sum(widths)):
        growing = [index for index, width in enumerate(widths) if width < longest[index]]
        if not growing:
            break
        widths[min(growing, key=lambda index: widths[index])] += 1
    return widths


def broken(text: str, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` characters: words that are longer break after commas, pieces anywhere.

    >>> broken("fp8:recent=0,block=8 or none", 14)
    ['fp8:recent=0,', 'block=8 or', 'none']
    """
    lines = [""]
    for word in re.findall(r"\S+", text):
        for index, piece in enumerate([word] if len(word) <= width else _pieces(word)):
            space = " " if lines[-1] and index == 0 else ""
            if lines[-1] and len(lines[-1]) + len(space) + len(piece) > width:
                lines.append("")
                space = ""
            lines[-1] += space
            while len(piece) > width:
                lines[-1:] = [piece[:width], ""]
                piece = piece[width:]
            lines[-1] += piece
    return lines


def _pieces(word: str) -> list[str]:
    """What may not be broken, with the comma or plus that follows; those within numbers break nothing."""
    return [piece for piece in re.split(r"(?<=[,+])(?!\d)", word) if piece]


def _longest_piece(text: str) -> int:
    return max((len(piece) for word in text.split() for piece in _pieces(word)), default=0)
