"""The out-of-memory frontier: how far prompts and batches could be raised, by what ran and what did not."""

from __future__ import annotations

from collections.abc import Sequence

import fake_records as fake
from test_tables import printed

from kvbench.measure.parts.speed import SpeedWorkload
from kvbench.report.html import write_report
from kvbench.report.memory_frontier import IN_WORDS, memory_frontiers
from kvbench.report.reproduce import recipes
from kvbench.report.tables import markdown
from kvbench.runs.dominated import NOT_TRIED
from kvbench.runs.records import Record
from kvbench.runs.trials import Workload

NONE, INT = fake.OUTCOMES[0], fake.OUTCOMES[3]
RAN, RAN_OUT, LEFT_OUT = "ran", "ran out", "left out"


def record(
    outcome: fake.Outcome, prompt: int, batch: int, end: str, limit: int | None = 2 << 30, steps: int = 32
) -> Record:
    workload = Workload(name=f"{prompt} x {batch}", speed=SpeedWorkload(prompt=prompt, batch=batch, steps=steps))
    kind = NOT_TRIED if end == LEFT_OUT else "MemoryError"
    made = fake.ok(outcome, workload) if end == RAN else fake.broken(outcome.spec, "oom", kind=kind, workload=workload)
    return made.model_copy(update={"trial": made.trial.model_copy(update={"memory_limit": limit})})


def grid(limit: int | None = 2 << 30) -> list[Record]:
    none = {(1024, 1): RAN, (2048, 1): RAN_OUT, (1024, 8): RAN, (2048, 8): LEFT_OUT}
    four = {(1024, 1): RAN, (2048, 1): RAN, (1024, 8): RAN, (2048, 8): RAN_OUT}
    ends = ((NONE, none), (INT, four))
    return [record(outcome, *size, end, limit) for outcome, of_sizes in ends for size, end in of_sizes.items()]


def cells(records: Sequence[Record]) -> dict[str, list[str]]:
    """The texts of the only frontier by compressor, under its titles."""
    (frontier,) = memory_frontiers(records)
    rows = {row.compressor: [cell.text if cell else "" for cell in row.cells] for row in frontier.rows}
    return {"titles": [column.heading for column in frontier.columns]} | rows


def test_the_longest_prompt_at_each_batch_and_the_largest_batch_at_each_prompt():
    assert cells(grid()) == {
        "titles": [
            *("longest prompt, batch 1", "longest prompt, batch 8", "longest prompt, per GiB"),
            *("largest batch, 1,024 tokens", "largest batch, 2,048 tokens", "largest batch, per GiB"),
        ],
        "none": ["1,024 (2,048 ✗)", "1,024 (2,048 –)", "512", "≥ 8", "none (1 ✗)", "≥ 4.00"],
        "int:bits=4": ["≥ 2,048", "1,024 (2,048 ✗)", "≥ 1024", "≥ 8", "1 (8 ✗)", "≥ 4.00"],
    }


def test_sizes_that_were_not_measured_or_failed_for_another_reason_are_left_open():
    broken = record(INT, 2048, 8, RAN_OUT).model_copy(update={"status": "failed"})
    assert cells([*grid()[:7], broken])["int:bits=4"] == ["≥ 2,048", "≥ 1,024", "≥ 1024", "≥ 8", "≥ 1", "≥ 4.00"]


def test_baselines_come_first_whatever_came_first():
    (frontier,) = memory_frontiers(grid()[::-1])
    assert [(row.compressor, row.baseline) for row in frontier.rows] == [("none", True), ("int:bits=4", False)]


def test_only_sizes_that_vary_have_columns():
    titles = cells([record(NONE, 1024, 1, RAN), record(NONE, 2048, 1, RAN_OUT)])["titles"]
    assert titles == ["longest prompt, batch 1", "longest prompt, per GiB"]


def test_without_a_limit_the_machines_memory_counts():
    (frontier,) = memory_frontiers(grid(limit=None))
    assert frontier.setting == "float32 on cpu, 2 threads, seed 0, 8 GiB in all"
    assert frontier.rows[1].cells[2].text == "≥ 256"


def test_where_memory_was_large_enough_there_is_no_frontier():
    ran = [record(NONE, prompt, 1, RAN) for prompt in (1024, 2048)]
    alone = [record(NONE, 1024, 1, RAN_OUT)]
    other_steps = [record(NONE, 1024, 1, RAN), record(NONE, 2048, 1, RAN_OUT, steps=64)]
    for records in ([], ran, alone, other_steps, fake.a_run()):
        assert memory_frontiers(records) == []


def test_other_limits_are_other_tables():
    settings = [frontier.setting for frontier in memory_frontiers([*grid(), *grid(1 << 30)])]
    assert [setting.rpartition(", ")[2] for setting in settings] == [
        "at most 2 GiB a process",
        "at most 1 GiB a process",
    ]


def test_it_stands_in_every_form_of_a_report(tmp_path):
    text = markdown(grid())
    assert "### smollm2-135m-instruct-q4\\_1 · how far the memory reaches" in text and IN_WORDS in text
    assert "| int:bits=4 | ≥ 2,048 | 1,024 (2,048 ✗) | ≥ 1024 | ≥ 8 | 1 (8 ✗) | ≥ 4.00 |" in text
    assert "1,024 (2,048 –)" in printed(grid(), width=160)
    page = write_report(grid(), tmp_path)[0].read_text("utf-8")
    assert "How far the memory reaches" in page and '<td data-sort="1024">1,024 (2,048 ✗)</td>' in page
    assert "how far the memory reaches" not in markdown(fake.a_run())


def test_the_limit_is_part_of_how_to_run_it_again():
    (recipe,) = recipes(grid())
    assert recipe.command == "kvbench sweep suite.toml --device cpu --memory-limit 2147483648"
    assert all(
        command.startswith("kvbench sweep suite.toml --model ") and command.endswith("--memory-limit 2147483648")
        for _, command in recipe.rows
    )
