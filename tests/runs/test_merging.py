"""Run folders put together: nothing lost, nothing counted twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from whole_record import MEMORY

from kvbench.errors import KvbenchError
from kvbench.runs.merging import merge
from kvbench.runs.shards import WHOLE, Shard
from kvbench.runs.store import RunStore


@given(items=st.lists(st.integers(), unique=True, max_size=30), count=st.integers(1, 9))
def test_shards_share_everything_out_evenly(items: list[int], count: int) -> None:
    parts = [Shard(number, count).of(items) for number in range(1, count + 1)]
    assert sorted(item for part in parts for item in part) == sorted(items)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["", "0/2", "3/2", "1", "1/", "a/b", "1/0", "-1/2", "1.0/2", "٣/4"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(KvbenchError, match="is not i/n"):
        Shard.parse(text)
    assert Shard.parse(None) == WHOLE and Shard.parse("2/4") == Shard(2, 4)


def filled(folder: Path, trials: list, records: list, suite: str = "quick") -> Path:
    store = RunStore(folder)
    store.plan(trials, suite)
    for record in records:
        store.append(record)
    return folder


def test_parts_of_a_suite_become_one_run(tmp_path, make_trial, make_record) -> None:
    parts = [
        filled(tmp_path / str(part), [make_trial(seed=part)], [make_record(seed=part)] if part else [])
        for part in range(3)
    ]
    done = merge(parts, tmp_path / "all")
    assert (done.added, done.conflicts) == (2, ())
    whole = RunStore(tmp_path / "all")
    assert sorted(record.trial.seed for record in whole.records()) == [1, 2]
    assert [trial.seed for trial in whole.missing()] == [0]
    assert merge(parts, tmp_path / "all").added == 0, "a second time adds nothing"


def test_a_good_record_wins_and_two_are_reported(tmp_path, make_trial, make_record) -> None:
    good, trial = make_record(), make_trial()
    other = make_record().model_copy(update={"memory": MEMORY.model_copy(update={"bytes_per_token": 1.0})})
    failed = filled(tmp_path / "failed", [trial], [make_record("oom")])
    one = filled(tmp_path / "one", [trial], [good])
    two = filled(tmp_path / "two", [trial], [other])
    assert merge([failed, one], tmp_path / "a").conflicts == ()
    assert RunStore(tmp_path / "a").records() == [good]
    done = merge([two, failed, one], tmp_path / "b")
    assert (done.added, done.conflicts) == (1, (good.id,))
    assert RunStore(tmp_path / "b").records()[0].memory.bytes_per_token == 1.0, "the first one stays"


def test_what_is_no_run_of_the_suite_is_refused(tmp_path, make_trial, make_record) -> None:
    one = filled(tmp_path / "one", [make_trial()], [make_record()])
    (tmp_path / "empty").mkdir()
    with pytest.raises(KvbenchError, match=r"empty is no run folder"):
        merge([one, tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(KvbenchError, match="into itself"):
        merge([one], one)
    other = filled(tmp_path / "other", [make_trial(seed=5)], [], suite="full")
    with pytest.raises(KvbenchError, match="holds suite 'quick', not 'full'"):
        merge([one, other], tmp_path / "out")
