"""Tables for terminals and Markdown."""

from __future__ import annotations

import io

import fake_records as fake
import pytest
from rich.console import Console

from kvbench.report.columns import DETAILS
from kvbench.report.tables import markdown, summary_table
from kvbench.runs.records import Record

HOSTILE = "int:bits=4,note=[bold]a|b</td>*_`"


def printed(records: list[Record], width: int = 100, wide: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(summary_table(records, wide=wide))
    return console.file.getvalue()


def row(text: str, name: str) -> str:
    """The first line that starts with the name, behind its mark."""
    return next(
        line for line in text.splitlines() if line[:2].strip() in ("", "★", "!", "✗") and name in line.split()[:2]
    )


def test_a_row_shows_what_was_measured_with_meaningful_digits_only():
    cells = row(printed(fake.a_run()), "kvtc:bits=3").split()
    assert cells[:6] == ["★", "kvtc:bits=3", "ok", "3.99", "5.47", "4.01"]
    assert cells[6:10] == ["51.4", "0.84", "▼", "0.64"] and cells[-3:] == ["29.20", "0.017", "92.9%"]


def test_speed_ups_carry_a_symbol_and_baselines_are_not_compared_with_themselves():
    text = printed(fake.a_run())
    assert "1.00 ≈" in row(text, "pca:rank=0.5")
    assert row(text, "none").split()[6:8] == ["1.00", "0.76"]


def test_klds_below_the_noise_floor_are_no_numbers():
    assert "≤ noise" in row(printed(fake.a_run()), "none")


def test_a_failed_trial_is_a_row_that_says_so_and_why():
    text = printed(fake.a_run())
    assert row(text, "kvtc:bits=1").split()[:3] == ["✗", "kvtc:bits=1", "failed"]
    assert "kvtc:bits=1 failed: KvbenchError: cannot allocate 1 bit" in text
    assert "pca:rank=0.5+int:bits=4 out of memory: RuntimeError" in text


def test_the_table_fits_a_terminal_of_100_characters_with_all_of_its_columns_but_two():
    text = printed(fake.a_run(), width=100)
    assert "not shown for lack of width: cache MiB, attends" in " ".join(text.split())
    assert "not shown" not in printed(fake.a_run(), width=130)
    assert all(name in text for name in ("bits", "bases", "ratio", "TPOT", "× none", "× hf", "PPL", "KLD", "top-1"))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_loses_columns_by_name_but_no_digit(width, wide):
    text = printed(fake.a_run(), width, wide)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    if width == 80:
        assert "not shown for lack of width: " in text


def test_wide_shows_every_number_with_its_interval():
    first, *rest = fake.a_run()
    layers = {
        "layers": 4,
        "compressed_layers": 2,
        "compressed_share": 0.9,
        "weight_bytes": 9 << 20,
        "expert_bytes": 3 << 20,
    }
    solved = first.model_copy(update={"solved_for": (3.0,), "memory": first.memory.model_copy(update=layers)})
    text = " ".join(printed([solved, *rest], width=170, wide=True).split())
    measured = [columns for part, columns in DETAILS.items() if getattr(first, part)]
    titles = [line for columns in measured for column in columns for line in column.title.split("\n")]
    assert all(title in text for title in titles)
    assert "0.84 [0.81, 0.87] ▼" in text
    assert "0.017 [0.013, 0.020]" in text


def test_columns_of_parts_that_were_not_measured_are_left_out():
    text = printed([fake.ok(outcome, fake.OTHER_DOMAIN) for outcome in fake.OUTCOMES])
    assert "KLD" in text
    assert "TPOT" not in text and "ratio" not in text
    assert "body" in text  # the bits of the compressed part are known from the quality run


def test_nothing_to_show_is_said():
    assert printed([]) == "No trial has been recorded.\n"
    assert markdown([]) == "No trial has been recorded.\n"
    assert "✗ int:bits=4" in printed([fake.broken("int:bits=4")])


def test_foreign_text_is_shown_as_it_is():
    records = [fake.ok(fake.Outcome(HOSTILE, 5, 0.1, 0.8, 1.0)), fake.broken("int:bits=2", message="[red]x[/red] | y")]
    text = printed(records, width=200)
    assert HOSTILE in text and "[red]x[/red] | y" in text
    lines = [line for line in markdown(records).splitlines() if line.startswith("|")]
    unescaped = [line.replace("\\|", "").count("|") for line in lines]
    assert len(set(unescaped)) == 1
    assert "</td>" not in markdown(records)


def test_markdown_is_one_table_per_group_with_a_row_per_trial():
    records = fake.a_run()
    text = markdown(records)
    assert text.count("### ") == 4
    assert sum(line.startswith("|") for line in text.splitlines()) == len(records) + 2 * 4
    assert "| ★ kvtc:bits=3 | ok | 3.99 | 5.47 | 4.01 |" in text
    assert "- ✗ kvtc:bits=1 failed: KvbenchError" in text
    assert text.endswith("\n") and not text.endswith("\n\n")
