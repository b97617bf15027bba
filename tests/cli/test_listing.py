"""Lists for terminals of any width."""

from __future__ import annotations

import doctest
import io
import re

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kvbench.cli import listing
from kvbench.cli.listing import Listing, broken
from kvbench.cli.ls import LISTS, list_table
from kvbench.cli.show import flowing

SPEC = "kqsvd:rank=0.4022,frame=before,heads=joint,recent=0,block=8,exact=float16+hadamard+int:bits=4"


def printed(table: Listing, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, markup=False)
    console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(listing).failed == 0


@given(st.text("ab1 ,+:=", max_size=60), st.integers(1, 30))
def test_nothing_is_lost_and_no_line_is_too_long(text, width):
    lines = broken(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(len(line) <= width for line in lines)


def test_lines_break_between_words_and_after_commas_only():
    rows = [[SPEC, "low rank", "4,997,120"], ["none", "baseline", "131,072"]]
    lines = printed(Listing(["compressor", "family", "B/token"], rows, frozenset({"B/token"})), 60)
    assert max(map(len, lines)) <= 60
    assert "4,997,120" in lines[1] and lines[1].endswith("4,997,120") and "low rank" in lines[1]
    for line in lines[1:-1]:
        assert re.search(r"[,+]$|bits=4$", line.split("  ")[0])


def test_kvbench_lists_its_compressors_in_eighty_columns_without_breaking_a_word():
    rows = LISTS["compressors"]()
    lines = printed(list_table(rows), 80)
    words = {word for line in lines for word in line.split()}
    assert max(map(len, lines)) <= 80
    assert {word for row in rows for text in row.values() for word in text.split()} <= words


def test_paragraphs_flow_and_list_entries_stay():
    text = "One\nline of :class:`kvbench.Thing`.\n\n1. first\n   more\n2. second"
    assert flowing(text) == "One line of kvbench.Thing.\n\n1. first more\n2. second"
