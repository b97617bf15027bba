"""Tables and charts of what a budget of bytes decodes."""

from __future__ import annotations

from pathlib import Path

import fake_records as fake
from markupsafe import escape

from kvbench.measure.parts.capacity import BaselineCapacity, CapacityResult, CapacityWorkload
from kvbench.measure.results import Bytes
from kvbench.report.capacity_chart import capacities
from kvbench.report.columns import DETAILS
from kvbench.report.findings import findings
from kvbench.report.groups import grouped
from kvbench.report.html import write_report
from kvbench.report.tables import markdown
from kvbench.runs.jsonl import decode_line, encode_line
from kvbench.runs.records import Record
from kvbench.runs.trials import Workload

ROW = {"none": 48 << 20, "hf": 45 << 20, "int:bits=4": 8 << 20, "kvtc:bits=3": 6 << 20}
STEP_S = {"none": 0.1, "hf": 0.12, "int:bits=4": 0.4, "kvtc:bits=3": 2.0}


def result(spec: str, settings: CapacityWorkload) -> CapacityResult:
    rows = {name: settings.budget // (size * settings.prompt // 1024) for name, size in ROW.items()}
    rates = {name: rows[name] / STEP_S[name] for name in ROW}
    taken = rows[spec] * ROW[spec] * settings.prompt // 1024
    return CapacityResult(
        budget=settings.budget,
        prompt=settings.prompt,
        batch=rows[spec],
        allocated=Bytes(payload=taken),
        largest_bytes=taken,
        one_more_bytes=taken + ROW[spec],
        steps=settings.steps,
        step_s=STEP_S[spec],
        tokens_per_s=rates[spec],
        tokens_per_s_per_gib=rates[spec] * 2**30 / taken,
        baselines=tuple(
            BaselineCapacity(
                name=name,
                batch=rows[name],
                largest_bytes=rows[name] * ROW[name],
                tokens_per_s=rates[name],
                ratio=rates[spec] / rates[name],
            )
            for name in ("none", "hf")
        ),
        attention="numba int",
    )


def at_lengths(lengths: tuple[int, ...] = (1024, 4096), budget: int = 2**29) -> list[Record]:
    records = []
    for tokens in lengths:
        settings = CapacityWorkload(prompt=tokens, budget=budget)
        workload = Workload(name=f"tokens-{tokens}-{budget}", capacity=settings)
        records += [
            Record.of(fake.trial(spec, workload), "ok", fake.MACHINE, capacity=result(spec, settings)) for spec in ROW
        ]
    return records


def test_a_record_with_a_capacity_is_a_line_that_reads_back():
    record = at_lengths()[2]
    assert decode_line(encode_line(record).rstrip()) == record


def test_the_table_has_batch_rate_and_ratios():
    table = markdown(at_lengths((1024,)))
    (row,) = (line for line in table.splitlines() if "int:bits=4" in line)
    head = next(line for line in table.splitlines() if line.startswith("| compressor"))
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert cells["rows in budget"] == "64" and cells["tokens/s in budget"] == "160"
    assert cells["tokens/s × none"] == "1.60" and "tokens/s × hf" in cells and "tokens/s per GiB" in cells
    assert "capacity: caches within 512 MiB, prompt 1,024" in table


def test_every_compressor_has_a_bar_at_every_length_with_its_rows():
    (figure,) = capacities(grouped(at_lengths()))
    rows = figure.specification()["data"]["values"]
    assert {(row["name"], row["tokens"]) for row in rows} == {(name, at) for name in ROW for at in (1024, 4096)}
    (label,) = (row["label"] for row in rows if (row["name"], row["tokens"]) == ("int:bits=4", 4096))
    assert label == "40.0 · 16 rows"
    assert "int:bits=4 40.0 · 16 rows" in figure.description and figure.png().startswith(b"\x89PNG")


def test_budgets_have_charts_of_their_own():
    figures = capacities(grouped(at_lengths() + at_lengths(budget=2**30)))
    assert len({figure.name for figure in figures}) == 2
    assert capacities(grouped(fake.a_run()[:3])) == []


def test_the_most_in_a_budget_is_a_finding():
    (finding,) = findings(grouped(at_lengths((1024,)))[0])
    assert (finding.question, finding.answer) == ("Most tokens a second within 512 MiB", "int:bits=4")
    assert finding.numbers == "160 tokens/s by 64 rows, 1.60 × none, 1.75 × hf"


def test_the_report_holds_the_chart_and_writes_the_picture(tmp_path: Path):
    files = {path.name for path in write_report(at_lengths(), tmp_path)}
    (picture,) = (name for name in files if name.endswith("capacity.png"))
    page = (tmp_path / "report.html").read_text("utf-8")
    assert f'data-chart="{Path(picture).stem}"' in page and "What the memory buys" in page
    assert all(escape(column.description) in page for column in DETAILS["capacity"])
