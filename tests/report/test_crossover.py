"""Charts of speed against length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fake_records as fake

from kvbench.measure.parts.speed import SpeedWorkload
from kvbench.report.crossover import crossovers
from kvbench.report.groups import grouped
from kvbench.report.html import write_report
from kvbench.runs.records import Record
from kvbench.runs.trials import Workload

LENGTHS = (512, 1024, 2048, 4096, 8152)


def at_lengths(lengths: tuple[int, ...] = LENGTHS, batch: int = 1) -> list[Record]:
    """All fake compressors, the faster the longer the prompt."""
    records = []
    for tokens in lengths:
        workload = Workload(name=f"tokens-{tokens}-{batch}", speed=SpeedWorkload(prompt=tokens, batch=batch))
        records += [fake.ok(replace(own, speed_up=own.speed_up ** (tokens / 2048)), workload) for own in fake.OUTCOMES]
    return records


def test_a_compressor_is_a_line_through_all_lengths():
    (figure,) = crossovers(grouped(at_lengths()))
    stops = next(iter(layer for layer in figure.specification()["layer"] if layer["mark"]["type"] == "point"))
    rows = stops["data"]["values"]
    assert {row["name"] for row in rows} == {own.spec for own in fake.OUTCOMES} - {"none"}
    assert sorted(row["tokens"] for row in rows if row["name"] == "int:bits=4") == list(LENGTHS)
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in rows)
    assert figure.png().startswith(b"\x89PNG")


def test_words_say_from_which_length_on_a_compressor_is_faster():
    records = [
        record.model_copy(
            update={"speed": record.speed.model_copy(update={"ratio_to_none_interval": fake.around(at, 0.1)})}
        )
        for record, at in zip(
            [record for record in at_lengths((512, 1024, 2048)) if record.trial.compressor == "int:bits=4"],
            (0.8, 1.05, 1.4),
            strict=True,
        )
        if record.speed
    ]
    (figure,) = crossovers(grouped(records))
    assert "int:bits=4 from 2,048 on" in figure.description


def test_one_length_is_no_line():
    assert crossovers(grouped(at_lengths((2048,)))) == []
    assert crossovers(grouped(fake.a_run()[:3])) == []


def test_batches_have_charts_of_their_own_and_names_differ():
    found = crossovers(grouped(at_lengths() + at_lengths((512, 4096), batch=8)))
    assert len({figure.name for figure in found}) == 2 and all("crossover" in figure.name for figure in found)


def test_the_report_holds_the_chart_and_writes_the_picture(tmp_path: Path):
    files = {path.name for path in write_report(at_lengths((512, 4096)), tmp_path)}
    (picture,) = (name for name in files if name.endswith("crossover.png"))
    assert (tmp_path / picture).stat().st_size > 1000
    assert f'data-chart="{Path(picture).stem}"' in (tmp_path / "report.html").read_text("utf-8")
