"""Tasks and needles in tables, pictures and side by side."""

from __future__ import annotations

import re

from fake_records import MACHINE, trial

from kvbench.measure.parts.needles import NeedleCell, NeedlesResult, NeedlesWorkload
from kvbench.measure.parts.tasks import Answer, TaskScore, TasksResult, TasksWorkload
from kvbench.report import answers as module
from kvbench.report.answers import answer_tables
from kvbench.report.groups import grouped
from kvbench.report.heatmaps import needle_map, task_map
from kvbench.report.html import write_report
from kvbench.report.tables import markdown
from kvbench.report.verdicts import judged
from kvbench.runs.records import Record
from kvbench.runs.trials import Workload

TASKS = Workload(name="tasks", tasks=TasksWorkload(tasks=("vt", "cwe", "fwe"), samples=12))
NEEDLES = Workload(name="needles", needles=NeedlesWorkload(lengths=(512, 1024), depths=(0.0, 1.0), samples=2))


def task(name: str, before: list[float], after: list[float], marks: str = "<b>&") -> TaskScore:
    return TaskScore(
        task=name,
        answers=tuple(
            Answer(
                sample=index,
                question=f"question {index} {marks}",
                references=("42",),
                baseline="42" if old == 1 else "none",
                compressed="42" if new == 1 else f"rambling {marks}",
                baseline_score=old,
                score=new,
            )
            for index, (old, new) in enumerate(zip(before, after, strict=True))
        ),
        attention="numba int",
    )


def tasks(lost: int, gained: int = 0) -> TasksResult:
    """``vt`` loses some, ``cwe`` stays as it was, ``fwe`` cannot be done at all."""
    hits = [1.0] * 12
    vt = task("vt", [0.0] * gained + hits[gained:], [1.0] * gained + [0.0] * lost + hits[gained + lost :])
    return TasksResult(tasks=(vt, task("cwe", hits, hits), task("fwe", [0.0] * 12, [0.0] * 12)))


def needles(score: float) -> NeedlesResult:
    cells = [
        NeedleCell(length=length, depth=depth, score=task(f"{length}, {depth:.0%}", [1.0, 1.0], [score, score]))
        for length in (512, 1024)
        for depth in (0.0, 1.0)
    ]
    return NeedlesResult(cells=tuple(cells))


RECORDS = [
    Record.of(trial("none", TASKS), "ok", MACHINE, tasks=tasks(0)),
    Record.of(trial("int:bits=4", TASKS), "ok", MACHINE, tasks=tasks(1)),
    Record.of(trial("kivi:bits=2", TASKS), "ok", MACHINE, tasks=tasks(11, 1)),
    Record.of(trial("kivi:bits=2", NEEDLES), "ok", MACHINE, needles=needles(0.0)),
]


def test_verdicts_follow_from_what_was_lost() -> None:
    none, few, most = (judged(tasks(*lost).tasks, 0.05) for lost in ((0,), (1,), (11, 1)))
    assert (none.verdict, few.verdict, most.verdict) == ("unharmed", "undecided", "harmed")
    assert [each.verdict for each in most.tasks] == ["harmed", "unharmed", "undecidable"]
    assert none.samples_needed is None and few.samples_needed is not None and few.samples_needed > 24
    assert few.retention is not None and abs(few.retention - (11 / 12 + 1) / 2) < 1e-12
    assert most.difference is not None and most.difference.high < 0


def test_where_nothing_can_be_done_nothing_is_decided() -> None:
    judgement = judged((task("fwe", [0.0] * 12, [0.0] * 12),), 0.05)
    assert judgement.verdict == "undecidable" and judgement.difference is None and judgement.retention is None


def test_the_table_says_verdict_and_interval() -> None:
    text = markdown(RECORDS)
    assert re.search(r"\| undecided \| \d+ \|", text) and "| harmed | – |" in text
    assert "| harmed |" in text and "| 11 of 23 |" in text and "RULER-style" in text
    assert "| 0.0 |" in text and "4 of 4" not in text and "8 of 8" in text


def test_what_got_worse_comes_first() -> None:
    table = answer_tables(grouped(RECORDS))[0]
    assert table is not None
    assert table.counts == {"worse": 1 + 11, "better": 1, "different": 0, "same": 72 - 13}
    assert [row.change for row in table.rows[:13]] == ["worse"] * 12 + ["better"]
    assert table.compressors and "none" not in table.compressors


def test_a_page_of_very_many_answers_leaves_out_what_is_the_same(monkeypatch) -> None:
    whole = answer_tables(grouped(RECORDS))
    answers = sum(len(table.rows) for table in whole if table)
    monkeypatch.setattr(module, "MOST_ROWS", answers - 1)
    for before, table in zip(whole, answer_tables(grouped(RECORDS)), strict=True):
        assert (before is None) == (table is None)
        if before and table:
            assert list(table.rows) == [row for row in before.rows if row.change != "same"]
            assert (before.left_out, table.left_out) == (0, before.counts["same"])


def test_answers_travel_with_every_text_once() -> None:
    table = answer_tables(grouped(RECORDS))[0]
    assert table is not None
    told = table.packable
    assert len(set(told["texts"])) == len(told["texts"]) and len(told["texts"]) < len(table.rows)
    for name, places in told["columns"].items():
        assert [told["texts"][place] for place in places] == [getattr(row, name) for row in table.rows]


def test_pictures_have_every_cell() -> None:
    by_task, by_place = grouped(RECORDS)
    drawn, places = task_map(by_task, "a"), needle_map(by_place, "b")
    assert drawn is not None and places is not None and task_map(by_place, "c") is None
    assert "Harmed: kivi:bits=2 in vt" in drawn.description and "kivi:bits=2 0 %" in places.description
    for figure in (drawn, places):
        assert figure.png().startswith(b"\x89PNG") and b"<svg" in figure.svg()


def test_the_page_shows_them_and_nothing_of_an_answer_is_markup(tmp_path) -> None:
    write_report(RECORDS, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Every answer, side by side: 12 worse, 1 better" in page and 'data-filter="change"' in page
    assert r"rambling \u003cb\u003e\u0026" in page and "rambling <b>" not in page
    assert len(list(tmp_path.glob("*.png"))) == 2
