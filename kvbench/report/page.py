"""The HTML report's content, ready for the template: texts and numbers, nothing left to compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from altair.utils.schemapi import debug_mode

from kvbench.report.answers import AnswerTable, answer_tables
from kvbench.report.capacity_chart import capacities
from kvbench.report.charts import figures
from kvbench.report.columns import DETAILS, Cell, Column
from kvbench.report.crossover import crossovers
from kvbench.report.domain_map import domain_maps
from kvbench.report.environments import Environment, environments
from kvbench.report.figure import Figure
from kvbench.report.findings import Finding, findings
from kvbench.report.groups import STATUS_WORDS, Group, grouped, is_baseline, row_mark, why
from kvbench.report.memory_frontier import IN_WORDS, MemoryFrontier, memory_frontiers
from kvbench.report.numbers import in_line
from kvbench.report.reproduce import Recipe, recipes
from kvbench.runs.records import Record
from kvbench.runs.store import StoreStatus

MARK_WORDS = {"★": "on the Pareto frontier", "!": "allocated bytes miss the prediction", "✗": "no result", " ": ""}
DIGIT_WIDE, POINT_WIDE = "\u2007", "\u2008"
"""Spaces as wide as a digit and as a full stop."""


@dataclass(frozen=True)
class Row:
    """A trial in a table; ``reason`` replaces the cells of a failed one that has none."""

    name: str
    mark: str
    mark_word: str
    status: str
    baseline: bool
    reason: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Head:
    """A column's title and description, and what its cells must keep room for so that all numbers stand in line."""

    lines: list[str]
    description: str
    spread_width: float
    """Of the widest interval, in digits."""
    trends: bool


@dataclass(frozen=True)
class TableView:
    """A table with its columns and rows."""

    caption: str
    heads: tuple[Head, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Section:
    """A model under a workload."""

    anchor: str
    title: str
    setting: str
    workload: tuple[str, ...]
    findings: list[Finding]
    summary: TableView
    remarks: tuple[str, ...]
    figures: list[Figure]
    answers: AnswerTable | None
    details: list[TableView]


@dataclass(frozen=True)
class MemoryView:
    """What fits the memory: a model, its setting, and a row for every compressor."""

    title: str
    setting: str
    table: TableView


@dataclass(frozen=True)
class Failed:
    """A trial without a result, with all that is known about why."""

    compressor: str
    where: str
    status: str
    reason: str
    message: str
    traceback: str | None


@dataclass(frozen=True)
class Page:
    """The whole report."""

    measured: str
    counts: list[tuple[str, int, str]]
    """Status, number of trials, in words."""
    progress: str
    crossovers: list[Figure]
    """Speed against length, over all workloads of a model."""
    capacities: list[Figure]
    """What a budget of bytes decodes, over all workloads of a model."""
    domains: list[Figure]
    """KLD by what was calibrated on and what is scored, over all workloads of a model."""
    memory: list[MemoryView]
    """How far prompts and batches could be raised, for every model whose trials ran out of memory."""
    sections: list[Section]
    failures: list[Failed]
    environments: list[Environment]
    recipes: list[Recipe]
    definitions: dict[str, tuple[Column, ...]]

    @property
    def memory_in_words(self) -> str:
        """What the tables of ``memory`` show."""
        return IN_WORDS

    @property
    def figures(self) -> list[Figure]:
        """All charts."""
        return [
            *self.capacities,
            *self.crossovers,
            *self.domains,
            *(figure for section in self.sections for figure in section.figures),
        ]


def page(records: Sequence[Record], status: StoreStatus | None = None) -> Page:
    """The report's content; ``status`` tells how much of the run is still missing."""
    with debug_mode(False):  # charts are checked by tests, not anew whenever one is changed
        return _page(records, status)


def _page(records: Sequence[Record], status: StoreStatus | None) -> Page:
    groups = grouped(records)
    drawn, answers = figures(groups), answer_tables(groups)
    counts: Counter[str] = Counter(record.status for record in records)
    return Page(
        measured=_days(records),
        counts=[(name, counts[name], words) for name, words in STATUS_WORDS.items() if counts[name]],
        progress=_progress(status),
        crossovers=crossovers(groups),
        capacities=capacities(groups),
        domains=domain_maps(groups),
        memory=[_memory(frontier) for frontier in memory_frontiers(records)],
        sections=[_section(number, *each) for number, each in enumerate(zip(groups, drawn, answers, strict=True), 1)],
        failures=[_failed(record) for group in groups for record in group.failed],
        environments=environments(records),
        recipes=recipes(records),
        definitions={
            part: columns for part, columns in DETAILS.items() if any(getattr(each, part) for each in records)
        },
    )


def _days(records: Sequence[Record]) -> str:
    days = sorted({f"{record.provenance.started:%Y-%m-%d}" for record in records})
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""


def _progress(status: StoreStatus | None) -> str:
    if status is None or not status.missing:
        return ""
    return f"The run is not finished: {status.missing} of {status.expected} expected trials have no record yet."


def _section(number: int, group: Group, drawn: list[Figure], answers: AnswerTable | None) -> Section:
    return Section(
        anchor=f"group-{number}",
        title=group.title,
        setting=group.setting,
        workload=group.workload,
        findings=findings(group),
        summary=_table(f"Results, {group.title}", group, group.summary),
        remarks=group.remarks,
        figures=drawn,
        answers=answers,
        details=[_table(part.capitalize(), group, columns) for part, columns in group.details.items()],
    )


def _table(caption: str, group: Group, columns: tuple[Column, ...]) -> TableView:
    aligned = [_aligned(group.cells(column)) for column in columns]
    rows = [_row(group, record, tuple(cells[index] for cells in aligned)) for index, record in enumerate(group.records)]
    heads = tuple(_head(column, cells) for column, cells in zip(columns, aligned, strict=True))
    return TableView(caption, heads, tuple(rows))


def _memory(frontier: MemoryFrontier) -> MemoryView:
    heads = tuple(Head(column.title.split("\n"), column.description, 0.0, False) for column in frontier.columns)
    rows = tuple(Row(row.compressor, " ", "", "ok", row.baseline, "", row.cells) for row in frontier.rows)
    return MemoryView(frontier.model, frontier.setting, TableView(f"Memory, {frontier.model}", heads, rows))


def _head(column: Column, cells: Sequence[Cell | None]) -> Head:
    known = [cell for cell in cells if cell]
    # Brackets, points and spaces are about half as wide as digits.
    widths = [sum(1.0 if character.isdigit() else 0.55 for character in cell.spread) for cell in known]
    return Head(
        column.title.split("\n"),
        column.description,
        round(max(widths, default=0.0), 1),
        any(cell.trend for cell in known),
    )


def _row(group: Group, record: Record, cells: tuple[Cell | None, ...]) -> Row:
    mark = row_mark(group, record)
    reason = "" if record.status == "ok" or any(cells) else f"{STATUS_WORDS[record.status]}: {why(record)}"
    return Row(record.trial.compressor, mark, MARK_WORDS[mark], record.status, is_baseline(record), reason, cells)


def _aligned(cells: Sequence[Cell | None]) -> list[Cell | None]:
    """The same cells with decimal points in one column, which needs digits of one width."""
    texts = iter(in_line([cell.text for cell in cells if cell]))
    return [Cell(_spaced(next(texts)), cell.sort, cell.spread, cell.trend) if cell else None for cell in cells]


def _spaced(text: str) -> str:
    number = text.rstrip(" ")
    padding = len(text) - len(number)
    if not padding:
        return text
    return number + ("" if "." in number else POINT_WIDE) + DIGIT_WIDE * (padding - ("." not in number))


def _failed(record: Record) -> Failed:
    failure = record.failure
    where = f"{record.trial.model} · {record.trial.workload.name}"
    message = f"{failure.type}: {failure.message}" if failure else ""
    return Failed(
        record.trial.compressor, where, record.status, why(record), message, failure.traceback if failure else None
    )
