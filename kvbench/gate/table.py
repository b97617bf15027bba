"""Verdict rows as a table for people."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from kvbench.gate.verdicts import Cell, Row, Verdict

WIDTH = 160
_STYLES = {Verdict.SAME: "dim", Verdict.NEW: "cyan", Verdict.BETTER: "green", Verdict.INCOMPARABLE: "yellow"}


def verdict_table(rows: Iterable[Row], hide_same: bool = False) -> Table:
    """One line per trial key and metric; ``hide_same`` leaves out metrics that did not change."""
    table = Table("trial", "metric", box=None, pad_edge=False)
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    table.add_column("note", overflow="fold")
    for row in rows:
        for line in _lines(row, hide_same):
            table.add_row(*line, style=_STYLES.get(row.verdict, "red"))
    return table


def plain(table: Table) -> str:
    """The table as text without colours."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _lines(row: Row, hide_same: bool) -> list[tuple[str, ...]]:
    cells = {name: cell for name, cell in row.cells.items() if not (hide_same and cell.verdict is Verdict.SAME)}
    if not cells:
        return [(row.key, "", "", "", "", row.verdict, row.note)]
    lines = [(name, *_numbers(cell), cell.verdict or "not judged", row.note) for name, cell in cells.items()]
    return [
        (row.key if first else "", *line) for first, line in zip([True] + [False] * len(lines), lines, strict=False)
    ]


def _numbers(cell: Cell) -> tuple[str, str, str]:
    """Both numbers, with as many digits as it takes to tell them apart, and the relative change."""
    before, after = _short(cell.before), _short(cell.after)
    if before == after and cell.before != cell.after:
        before, after = repr(cell.before), repr(cell.after)
    if not cell.before or cell.after is None or cell.after == cell.before:
        return before, after, ""
    return before, after, f"{cell.after / cell.before - 1:+.2%}"


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
