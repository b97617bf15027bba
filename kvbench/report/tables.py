"""Records as tables for the terminal and for Markdown files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.console import Group as Stack
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvbench.report.columns import LEGENDS, LESSER, Cell, Column, Trend
from kvbench.report.groups import STATUS_WORDS, Group, grouped, row_mark, why
from kvbench.report.memory_frontier import IN_WORDS, MemoryFrontier, memory_frontiers
from kvbench.report.numbers import MISSING, in_line
from kvbench.runs.records import Record

STYLES = {Trend.FASTER: "green", Trend.SLOWER: "red", Trend.SAME: "dim"}
NARROWEST_NAME = 16
"""Characters below which a compressor's name is not folded any further."""

LONGEST_STATUS = len("interrupted  ")

EMPTY = "No trial has been recorded."
BEST_LEGEND = "★ on the Pareto frontier: nothing of its bits (within 2 %) or fewer has a clearly lower KLD"

REACH = "how far the memory reaches"


def summary_table(records: Iterable[Record], *, wide: bool = False) -> RenderableType:
    """What ``kvbench run`` prints: for each model and workload a table with a row per trial, failed ones included.

    By default the columns that matter, for a terminal of 100 characters; ``wide`` gives every number, with its
    interval, in a table for each part. Give it to the ``print`` of a rich console.
    """
    records = list(records)
    groups, frontiers = grouped(records), memory_frontiers(records)
    if not groups:
        return Text(EMPTY)
    parts = [part for group in groups for part in _render(group, wide)]
    parts += [part for frontier in frontiers for part in _render_memory(frontier)]
    return Stack(*parts, Text("\n".join(_legend(groups, frontiers)), style="dim"))


def markdown(records: Iterable[Record]) -> str:
    """The summary as GitHub tables, for READMEs and leaderboards; ends with a newline."""
    records = list(records)
    groups, frontiers = grouped(records), memory_frontiers(records)
    if not groups:
        return f"{EMPTY}\n"
    tables = [*map(_markdown_group, groups), *map(_markdown_memory, frontiers)]
    legend = "  \n".join(escaped(line) for line in _legend(groups, frontiers))
    return "\n\n".join([*tables, legend]) + "\n"


def escaped(text: str) -> str:
    """Foreign text that Markdown shows as it is, in one table cell."""
    for special in "\\|`*_<>[]":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())


def _render(group: Group, wide: bool) -> list[RenderableType]:
    heading = Text(group.title, style="bold")
    about = Text("\n".join((group.setting, *group.workload)), style="dim")
    tables = list(group.details.values()) if wide else [group.summary]
    # Where every trial failed no column is left, but the rows still are.
    bodies = [Padding(_Fitting(group, columns, wide), (1, 0)) for columns in tables or [()]]
    return [heading, about, *bodies, *_notes(group), Text()]


@dataclass(frozen=True)
class _Block:
    """A column ready to print: title and numbers padded to one width, so that decimal points stand in line."""

    column: Column
    title: tuple[str, ...]
    texts: tuple[Text, ...]
    width: int

    @classmethod
    def of(cls, column: Column, cells: Sequence[Cell | None], wide: bool) -> _Block:
        """``wide`` shows intervals too."""
        title, texts = column.title.split("\n"), _texts(cells, wide)
        width = max(*map(len, title), *map(len, texts), 0)
        for text in texts:
            text.pad_left(width - len(text))
        return cls(column, tuple(line.rjust(width) for line in title), tuple(texts), width)


@dataclass(frozen=True)
class _Fitting:
    """A group's table, without its lesser columns where the terminal is narrow: a cut number would be a wrong one."""

    group: Group
    columns: tuple[Column, ...]
    wide: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, and a line that names what was left out."""
        blocks = [_Block.of(column, self.group.cells(column), self.wide) for column in self.columns]
        taken = NARROWEST_NAME + (LONGEST_STATUS if self._with_status else 0)
        for column in LESSER:
            if taken + sum(block.width + 2 for block in blocks) <= options.max_width:
                break
            blocks = [block for block in blocks if block.column is not column]
        yield self._table(blocks)
        shown = [block.column for block in blocks]
        if omitted := [column.heading for column in self.columns if column not in shown]:
            yield Text(f"not shown for lack of width: {', '.join(omitted)}", style="dim")

    @property
    def _with_status(self) -> bool:
        return bool(self.group.failed) and not self.wide

    def _table(self, blocks: Sequence[_Block]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        lines = max((len(block.title) for block in blocks), default=1)
        table.add_column(_lowered(["compressor"], lines), overflow="fold", min_width=NARROWEST_NAME)
        if self._with_status:
            table.add_column(_lowered(["status"], lines), no_wrap=True)
        for block in blocks:
            table.add_column(_lowered(block.title, lines), no_wrap=True)
        for index, record in enumerate(self.group.records):
            status = [_status(record)] if self._with_status else []
            table.add_row(_name(self.group, record), *status, *(block.texts[index] for block in blocks))
        return table


def _render_memory(frontier: MemoryFrontier) -> list[RenderableType]:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("\ncompressor", overflow="fold", min_width=NARROWEST_NAME)
    for column in frontier.columns:
        table.add_column(column.title, justify="right")
    for row in frontier.rows:
        table.add_row(Text(row.compressor), *(cell.text if cell else MISSING for cell in row.cells))
    title = Text(f"{frontier.model} · {REACH}", style="bold")
    return [title, Text(frontier.setting, style="dim"), Padding(table, (1, 0)), Text()]


def _lowered(title: Sequence[str], lines: int) -> str:
    """Short titles stand directly above their numbers."""
    return "\n".join([*([""] * (lines - len(title))), *title])


def _name(group: Group, record: Record) -> Text:
    mark = row_mark(group, record)
    style = {"✗": "red", "!": "yellow", "★": "bold"}.get(mark, "")
    return Text(f"{mark} {record.trial.compressor}", style=style)


def _status(record: Record) -> Text:
    return Text(record.status, style="dim" if record.status == "ok" else "red")


def _texts(cells: Sequence[Cell | None], wide: bool) -> list[Text]:
    numbers = in_line([cell.text if cell else MISSING for cell in cells])
    spreads = [cell.spread if cell and wide else "" for cell in cells]
    widest = max(map(len, spreads))
    trends = any(cell and cell.trend for cell in cells)
    lines = []
    for cell, number, spread in zip(cells, numbers, spreads, strict=True):
        line = Text(number, style="" if cell else "dim")
        if widest:
            line.append(f" {spread:>{widest}}", style="dim")
        if trends:
            trend = cell.trend if cell else None
            line.append(f" {trend.value}" if trend else "  ", style=STYLES[trend] if trend else "")
        lines.append(line)
    return lines


def _notes(group: Group) -> list[Text]:
    failures = [
        Text.assemble(("✗ ", "red"), f"{record.trial.compressor} {STATUS_WORDS[record.status]}: {why(record)}")
        for record in group.failed
    ]
    return [*failures, *(Text(remark, style="yellow" if remark[0] == "!" else "dim") for remark in group.remarks)]


def _legend(groups: Sequence[Group], frontiers: Sequence[MemoryFrontier]) -> list[str]:
    """Only what these tables use."""
    records = [record for group in groups for record in group.records]
    lines = [
        *(line for part, line in LEGENDS.items() if any(getattr(record, part) for record in records)),
        BEST_LEGEND if any(group.best for group in groups) else "",
        f"{REACH}: {IN_WORDS}" if frontiers else "",
    ]
    return [line for line in lines if line]


def _markdown_group(group: Group) -> str:
    columns = group.summary
    status = ["status"] if group.failed else []
    header = ["compressor", *status, *(column.heading for column in columns)]
    about = "  \n".join(escaped(line) for line in (group.setting, *group.workload))
    lines = [
        *(f"### {escaped(group.title)}", "", about, ""),
        _markdown_row(header),
        _markdown_row(["---", *("---" for _ in status), *("---:" for _ in columns)]),
        *(_markdown_row(_markdown_cells(group, record, columns)) for record in group.records),
    ]
    if notes := _notes(group):
        lines += ["", *(f"- {escaped(note.plain)}" for note in notes)]
    return "\n".join(lines)


def _markdown_memory(frontier: MemoryFrontier) -> str:
    lines = [
        *(f"### {escaped(frontier.model)} · {REACH}", "", escaped(frontier.setting), ""),
        _markdown_row(["compressor", *(column.heading for column in frontier.columns)]),
        _markdown_row(["---", *("---:" for _ in frontier.columns)]),
    ]
    for row in frontier.rows:
        lines.append(_markdown_row([escaped(row.compressor), *(cell.text if cell else MISSING for cell in row.cells)]))
    return "\n".join(lines)


def _markdown_cells(group: Group, record: Record, columns: Sequence[Column]) -> list[str]:
    name = f"{row_mark(group, record)} {escaped(record.trial.compressor)}".strip()
    status = [record.status] if group.failed else []
    cells = [column.cell(record) for column in columns]
    texts = [f"{cell.text} {cell.trend.value if cell.trend else ''}".strip() if cell else MISSING for cell in cells]
    return [name, *status, *texts]


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
