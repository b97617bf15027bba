"""Long texts in tables, side by side, and their memory as a picture."""

from __future__ import annotations

from pathlib import Path

from fake_records import MACHINE, trial

from kvbench.measure.parts.generation import Generated, GenerationResult, GenerationWorkload, MemoryAt
from kvbench.report.answers import answer_tables
from kvbench.report.groups import grouped
from kvbench.report.growth_chart import growth
from kvbench.report.html import write_report
from kvbench.report.tables import markdown
from kvbench.runs.records import Record
from kvbench.runs.trials import Workload

LONG = Workload(name="long", generation=GenerationWorkload(prompts=2, tokens=400))


def text(diverges_at: int | None, compressed: str, tokens: int) -> Generated:
    return Generated(
        prompt="Once <b>upon</b>",
        baseline="a" * 300 + " time",
        compressed=compressed,
        baseline_tokens=300,
        tokens=tokens,
        baseline_ended=True,
        ended=tokens < 400,
        diverges_at=diverges_at,
        baseline_repeated=0.1,
        repeated=0.4,
        baseline_drift=0.5,
        drift=0.7,
    )


def generation(*texts: Generated, kld: float = 0.02) -> GenerationResult:
    memory = [MemoryAt(tokens=64 + at, bytes=1000 * (64 + at)) for at in (0, 32, 64)]
    return GenerationResult(
        texts=texts, kld_mean=kld, noise_floor_kld=1e-9, memory=tuple(memory), attention="numba int"
    )


SAME = text(None, "a" * 300 + " time", 300)
RECORDS = [
    Record.of(trial("none", LONG), "ok", MACHINE, generation=generation(SAME, SAME, kld=0.0)),
    Record.of(
        trial("int:bits=2", LONG), "ok", MACHINE, generation=generation(SAME, text(240, "a" * 300 + " rambling", 400))
    ),
]


def test_what_is_told_of_texts() -> None:
    none, lossy = (record.generation for record in RECORDS)
    assert none is not None and lossy is not None
    assert none.same_prefix == 1 and none.first_divergence is None and none.length_ratio == 1
    assert lossy.same_prefix == (1 + 240 / 300) / 2 and lossy.first_divergence == 240
    assert lossy.length_ratio == 700 / 600 and lossy.ended == 0.5 and abs(lossy.excess_drift - 0.2) < 1e-12
    table = markdown(RECORDS)
    assert "| 90.0 |" in table and "| 1.17 |" in table and "≤ noise" in table


def test_texts_stand_side_by_side_from_where_they_differ() -> None:
    table = answer_tables(grouped(RECORDS))[0]
    assert table is not None and table.counts == {"worse": 0, "better": 0, "different": 1, "same": 1}
    row = table.rows[0]
    assert row.references == "differs from token 240 on" and row.scores == "300 → 400 tokens"
    assert row.baseline == "…" + "a" * 99 + " time" and row.compressed == "…" + "a" * 99 + " rambling"


def test_memory_over_time_is_a_picture(tmp_path: Path) -> None:
    figure = growth(grouped(RECORDS)[0], "growth")
    assert figure is not None and "int:bits=2 0.122 MiB at 128" in figure.description
    assert figure.png().startswith(b"\x89PNG")
    write_report(RECORDS, tmp_path)
    assert any("growth" in path.name for path in tmp_path.glob("*.png"))
    assert r"Once \u003cb\u003eupon" in (tmp_path / "report.html").read_text()
