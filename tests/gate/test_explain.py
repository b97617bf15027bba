"""Verdicts in sentences and as Markdown."""

from __future__ import annotations

import pytest

from kvbench.gate.baseline import read_baseline, write_baseline
from kvbench.gate.explain import IN_WORDS, explain, markdown
from kvbench.gate.gate import gate
from kvbench.gate.metrics import TOLERANCES


@pytest.fixture
def path(tmp_path, record):
    write_baseline([record("none", kld=0.0), record()], tmp_path / "baseline.json")
    return tmp_path / "baseline.json"


def test_every_metric_has_words():
    assert IN_WORDS.keys() == TOLERANCES.keys()


def test_what_changed_by_how_much_and_what_may(path, record):
    baseline = read_baseline(path)
    told = explain(gate([record("none", kld=0.0), record(bytes=1001, kld=0.018)], baseline), baseline)
    (line,) = [line for line in told.splitlines() if "(allocated_bytes)" in line]
    assert "bytes of the cache after the prompt" in line and line.endswith("not one may pass.")
    assert "(kld_mean) grew from 0.012 to 0.018, +50.00%; 2.0% may pass." in told
    assert "random:llama | none" not in told and "a new one with `kvbench gate RESULTS" in told


def test_another_processor_is_told_of_where_something_changed(path, record):
    baseline, here = read_baseline(path), "Another CPU"
    changed = gate([record("none", kld=0.0, cpu=here), record(kld=0.018, cpu=here)], baseline)
    assert "Another CPU" in changed.reason and "the baseline on" in changed.reason and here in markdown(changed)
    assert "All was measured on Another CPU" in explain(changed, baseline)
    same = gate([record("none", kld=0.0, cpu=here), record(cpu=here)], baseline)
    assert same.exit_code == 0 and here not in same.reason + explain(same, baseline)
    old = baseline.model_copy(update={"processors": ()})
    assert here not in gate([record("none", kld=0.0, cpu=here), record(kld=0.018, cpu=here)], old).reason


def test_gone_failed_and_unchanged(path, record):
    baseline = read_baseline(path)
    told = explain(gate([record(between=1e-3)], baseline), baseline)
    assert "none | w is in the baseline and was not measured" in told
    assert "int:bits=4 | w failed: decoding token by token" in told and "records.jsonl" in told
    assert explain(gate([record("none", kld=0.0), record()], baseline), baseline) == "Nothing changed.\n"


def test_a_comment_for_a_pull_request(path, record):
    told = markdown(gate([record("none", kld=0.0), record(kld=0.018)], read_baseline(path)))
    head, _, table = told.partition("\n\n")
    assert head.startswith("**kvbench gate** · changed: 1 SAME, 1 WORSE")
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert rows[0] == "| `random:llama \\| int:bits=4 \\| w` | kld_mean | 0.012 | 0.018 | WORSE |"
    assert all(line.replace("\\|", "").count("|") == 6 for line in rows)
    assert "<summary>1 the same</summary>" in table and "- `random:llama | none | w`" in table
