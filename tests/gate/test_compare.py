from __future__ import annotations

import pytest

from kvbench.gate.compare import compare
from kvbench.gate.table import plain, verdict_table
from kvbench.gate.verdicts import Verdict


def one(a, b):
    (row,) = compare([a] if a else [], [b] if b else [])
    return row


def test_a_run_against_itself_is_the_same(record):
    row = one(record(), record())
    assert row.verdict is Verdict.SAME
    assert list(row.cells) == [
        "bytes_per_token",
        "allocated_bytes",
        "largest_bytes",
        "predicted_bytes",
        "model_level_bytes",
        "kld_mean",
        "decode_kld_mean",
        "noise_floor_kld",
        "perplexity",
        "tpot_s",
        "ratio_to_none",
    ]


@pytest.mark.parametrize(
    ("numbers", "metric", "verdict"),
    [
        ({"bytes": 900}, "allocated_bytes", Verdict.BETTER),
        ({"kld": 0.02}, "kld_mean", Verdict.WORSE),
        ({"perplexity": 28.0}, "perplexity", Verdict.BETTER),
        ({"speedup": 1.2}, "ratio_to_none", Verdict.BETTER),
        ({"speedup": 0.8}, "ratio_to_none", Verdict.WORSE),
        ({"speedup": 1.045}, "ratio_to_none", Verdict.SAME),
    ],
)
def test_each_metric_has_its_verdict(record, numbers, metric, verdict):
    row = one(record(), record(**numbers))
    assert row.cells[metric].verdict is verdict
    assert row.verdict is verdict


def test_time_is_not_judged_across_machines_or_without_intervals(record):
    for other in (record(speedup=0.5, cpu="another"), record(speedup=0.5, trial={"threads": 1}), record(speedup=None)):
        row = one(record(), other)
        assert (row.cells["ratio_to_none"].verdict, row.verdict) == (None, Verdict.SAME)


def test_intervals_of_two_methods_are_never_compared_in_silence(record):
    other = record(speedup=0.5)
    for part in ("quality", "speed"):
        result = getattr(other, part).model_copy(update={"interval_method": "percentile"})
        row = one(record(), other.model_copy(update={part: result}))
        assert f"{part} intervals of two methods" in row.note
        judged = Verdict.INCOMPARABLE if part == "speed" else Verdict.WORSE
        assert (row.cells["ratio_to_none"].verdict, row.verdict) == (judged, judged)
    assert one(record(), record()).note == ""


def test_a_bare_time_is_shown_and_not_judged(record):
    row = one(record(), record(tpot=0.2))
    assert (row.cells["tpot_s"].after, row.cells["tpot_s"].verdict, row.verdict) == (0.2, None, Verdict.SAME)
    assert "not judged" in plain(verdict_table([row]))


def test_the_gravest_cell_decides(record):
    assert one(record(), record(bytes=900, kld=0.02)).verdict is Verdict.WORSE


def test_absent_failed_and_incomparable_results(record, failed):
    assert one(None, record()).verdict is Verdict.NEW
    assert one(record(), None).verdict is Verdict.GONE
    assert one(record(), failed()).verdict is Verdict.FAILED
    assert one(failed(), record()).verdict is Verdict.NEW
    row = one(record(), record(trial={"weights_sha256": "0"}))
    assert (row.verdict, "weights" in row.note) == (Verdict.INCOMPARABLE, True)


def test_rows_keep_the_first_runs_order(record):
    rows = compare([record("b"), record("a")], [record("c"), record("a")])
    assert [(row.key.split(" | ")[1], row.verdict) for row in rows] == [
        ("b", Verdict.GONE),
        ("a", Verdict.SAME),
        ("c", Verdict.NEW),
    ]


def test_the_table_tells_close_numbers_apart(record):
    text = plain(verdict_table(compare([record(kld=0.0120000001)], [record(kld=0.0120000002)])))
    assert "0.0120000001" in text and "0.0120000002" in text
    assert "29" in text and "\x1b" not in text
