"""Models of which some layers stay as they are: a line under the table, and none where all are compressed."""

from __future__ import annotations

import fake_records as fake

from kvbench.report.groups import grouped
from kvbench.report.partly import numbers
from kvbench.report.tables import markdown


def changed(**memory: object) -> list:
    """A run whose compressed rows have these fields of memory."""
    return [
        record.model_copy(update={"memory": record.memory.model_copy(update=memory)})
        if record.memory and record.trial.compressor.startswith("kvtc")
        else record
        for record in fake.a_run()
    ]


def test_which_layers_and_their_share_are_told() -> None:
    kept = {"sliding_window": 2, "linear_attention": 1}
    records = changed(layers=4, compressed_layers=2, compressed_at=(1, 3), compressed_bytes=1000, kept_layers=kept)
    line, *_ = (line for group in grouped(records) for line in group.remarks if "layers are compressed" in line)
    assert line.startswith("2 of 5 layers are compressed (1, 3; the first is 0) and hold ")
    assert line.endswith("of the cache; as they are: 2 with a sliding window, 1 of linear attention")
    assert "as they are" in markdown(records)


def test_nothing_is_told_where_all_are_compressed_or_a_record_does_not_say() -> None:
    for records in (changed(compressed_at=(0, 1), compressed_bytes=9, kept_layers={}), fake.a_run()):
        assert not [line for group in grouped(records) for line in group.remarks if "layers are compressed" in line]


def test_runs_of_numbers_are_written_by_their_ends() -> None:
    assert numbers((1, 3, 4, 5, 8)) == "1, 3–5, 8"
    assert numbers((7,)) == "7"
