"""Committed results: whole, measured on a clean tree, shown as they are; and every figure quoted in prose is theirs."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvbench.report.tables import markdown
from kvbench.runs.jsonl import read_records

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
FOLDERS = sorted(path.parent for path in RESULTS.rglob("records.jsonl"))
PROSE = [ROOT / "README.md", RESULTS / "README.md"]

FIGURE = re.compile(r"(?<![\w.=:/,-])\d*\.\d+(?![\w.]*\w)")
"""A decimal number that is no part of a setting, a version, a path or a paper's number."""
CODE = re.compile(r"``.*?``|`.*?`|```.*?```", re.DOTALL)
QUANTITY = re.compile(r"\bKLD\b|perplexity|× none|× hf|\bTPOT\b|times (faster|slower)", re.IGNORECASE)
"""What kvbench measures: a figure beside one of these words must come from a committed record."""
FOLDER = re.compile(r"results/([a-z0-9/_-]+)")


def name_of(folder: Path) -> str:
    return str(folder.relative_to(RESULTS))


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_every_expected_trial_has_a_good_record(folder: Path) -> None:
    """Running out of memory is the result of a trial that had a limit."""
    expected = json.loads((folder / "manifest.json").read_text("utf-8"))["trials"]
    records = {record.id: record for record in read_records(folder)}
    assert set(records) == set(expected)
    good = {record.id: {"ok"} if record.trial.memory_limit is None else {"ok", "oom"} for record in records.values()}
    assert [record.trial.key for record in records.values() if record.status not in good[record.id]] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_records_were_measured_on_a_clean_tree(folder: Path) -> None:
    assert [record.trial.key for record in read_records(folder) if record.provenance.git_dirty is not False] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_one_revision_measured_a_folder(folder: Path) -> None:
    """`kvbench leaderboard results` takes no other."""
    assert len({record.provenance.git_sha for record in read_records(folder)}) == 1


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_the_table_is_what_the_records_say(folder: Path) -> None:
    assert (folder / "table.md").read_text("utf-8") == markdown(read_records(folder))


def paragraphs() -> Iterator[tuple[str, str]]:
    """(where, text) of every paragraph of the READMEs and of every docstring."""
    for path in PROSE:
        yield from ((path.name, part) for part in path.read_text("utf-8").split("\n\n"))
    for path in sorted([*(ROOT / "kvbench").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                yield from ((place, part) for part in node.value.value.split("\n\n"))


def quoted_figures(text: str) -> list[float]:
    return [float(number) for number in FIGURE.findall(CODE.sub(" ", text))]


def committed_figures(folder: str) -> set[float]:
    """All numbers in the tables of a results folder."""
    tables = [*(RESULTS / folder).rglob("table.md"), *(RESULTS / folder).glob("README.md")]
    assert tables, f"results/{folder} is quoted, and there is no table in it"
    return {float(number) for path in tables for number in re.findall(r"\d*\.?\d+(?:e-\d+)?", path.read_text("utf-8"))}


QUOTING = [(place, text) for place, text in paragraphs() if FOLDER.search(text) and quoted_figures(text)]


@pytest.mark.parametrize(("place", "text"), QUOTING, ids=[place for place, _ in QUOTING])
def test_figures_of_a_paragraph_that_names_results_stand_there(place: str, text: str) -> None:
    known = set().union(*(committed_figures(folder.rstrip("/")) for folder in FOLDER.findall(text)))
    assert [figure for figure in quoted_figures(text) if figure not in known] == []


def test_no_measured_figure_is_quoted_without_its_results() -> None:
    loose = [
        (place, text)
        for place, text in paragraphs()
        if QUANTITY.search(text)
        and quoted_figures(text)
        and not FOLDER.search(text)
        and "arXiv" not in text  # a paper's figures
        and "tests/" not in text  # a test's
    ]
    assert loose == []
