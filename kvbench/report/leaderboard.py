"""A static site of many results folders: a page with every folder's tables, and each folder's report beside it.

It is a function of the records alone: nothing is fetched, no clock is read, and the same records give the same bytes.
What stands in one table was measured by one revision of the code on the same texts and weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvbench.errors import KvbenchError, UndecidedError
from kvbench.report.columns import DETAILS
from kvbench.report.html import REPORT, templates, write_report
from kvbench.report.page import Section, page
from kvbench.runs.records import Record
from kvbench.runs.store import RunStore, read_records
from kvbench.storage.files import replace_file

INDEX = "index.html"


@dataclass(frozen=True)
class Board:
    """One results folder on the page."""

    name: str
    commit: str
    measured: str
    machine: str
    link: str
    sections: list[Section]
    trials: int
    parts: tuple[str, ...]
    """Of workloads, that were measured."""


def write_leaderboard(results: Path, site: Path) -> list[Path]:
    """Write ``index.html`` and a folder with the report of every results folder below ``results``; their paths.

    Folders of many trials come first.

    Raises:
        KvbenchError: there is none, a run is unfinished, or the site cannot be written.
        UndecidedError: a folder mixes revisions, or was measured with changes that are not committed.
    """
    folders = sorted(path.parent for path in results.glob("*/manifest.json"))
    if not folders:
        raise KvbenchError(f"{results} has no results folders; kvbench run --out {results}/NAME makes one")
    boards, written = [], []
    for folder in folders:
        store = RunStore(folder)
        if missing := store.status().missing:
            raise KvbenchError(f"{folder} is unfinished: {missing} trials have no record; run its suite to the end")
        records = read_records(folder)
        boards.append(_board(folder.name, records))
        written += write_report(records, site / folder.name, store.status())
    boards.sort(key=lambda board: -board.trials)
    parts = {
        part: [column for column in columns if column.summary]
        for part, columns in DETAILS.items()
        if any(part in board.parts for board in boards)
    }
    index = templates().get_template("leaderboard.html.j2").render(boards=boards, parts=parts)
    replace_file(site / INDEX, index.encode())
    return [site / INDEX, *written]


def _board(name: str, records: Sequence[Record]) -> Board:
    content = page(records)
    machines = sorted({record.provenance.cpu for record in records})
    return Board(
        name,
        _commit(name, records),
        content.measured,
        ", ".join(machines),
        f"{name}/{REPORT}",
        content.sections,
        len(records),
        tuple(content.definitions),
    )


def _commit(name: str, records: Sequence[Record]) -> str:
    """The one revision that measured everything."""
    commits = sorted({record.provenance.git_sha or "an unknown revision" for record in records})
    if len(commits) > 1:
        raise UndecidedError(f"{name} mixes revisions ({', '.join(each[:10] for each in commits)}); measure it anew")
    if any(record.provenance.git_dirty for record in records):
        raise UndecidedError(f"{name} was measured with changes that are not committed; commit, and measure it anew")
    return commits[0][:10]
