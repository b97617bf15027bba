from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvbench.errors import KvbenchError, UndecidedError
from kvbench.runs import store as store_module
from kvbench.runs.jsonl import decode_lines, encode_line
from kvbench.runs.store import RunStore, StoreStatus, read_records
from kvbench.runs.trials import SCHEMA
from kvbench.storage.files import append_bytes, replace_file


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore(tmp_path / "run")


def test_a_run_from_plan_to_done(store, make_trial, make_record):
    store.plan([make_trial(seed=seed) for seed in range(3)], "quick")
    assert store.status() == StoreStatus(expected=3, done=0, failed=0, missing=3, torn=0)
    store.append(make_record(seed=0))
    store.append(make_record("oom", seed=1))
    again = RunStore(store.folder)
    assert again.status() == StoreStatus(expected=3, done=1, failed=1, missing=1, torn=0)
    assert again.finished_ids() == {make_trial(seed=0).id}
    assert [trial.seed for trial in again.missing()] == [2]
    assert read_records(store.folder) == read_records(store.folder / "records.jsonl") == again.records()


def test_what_was_measured_anew_by_other_code_is_read_once(store, make_trial, make_record):
    """The manifest lets the older one go; a table with both would name two rows alike."""
    store.plan([make_trial(), make_trial(seed=1)], "quick")
    old, other, new = make_record(), make_record(seed=1), make_record(code="0" * 64)
    store.append_all([old, other, new])
    assert read_records(store.folder) == [new, other]
    assert store.finished_ids() == {old.id, other.id, new.id}, "who goes back to the old code measures nothing again"


def test_a_retry_replaces_the_failure(store, make_record):
    store.folder.mkdir()
    for status in ("failed", "ok"):
        store.append(make_record(status))
    (record,) = store.records()
    assert record.status == "ok"
    assert store.finished_ids() == {record.id}


def test_the_same_suite_extends_the_manifest(store, make_trial):
    store.plan([make_trial(seed=0)], "quick")
    created = store.manifest.created
    RunStore(store.folder).plan([make_trial(seed=1)], "quick")
    again = RunStore(store.folder)
    assert [trial.seed for trial in again.missing()] == [0, 1]
    assert again.manifest.created == created
    with pytest.raises(KvbenchError, match="quick"):
        again.plan([make_trial()], "full")


def test_changed_code_takes_the_place_of_the_old(store, make_trial):
    store.plan([make_trial(), make_trial(threads=1)], "quick")
    store.plan([make_trial(code="new")], "quick")
    assert {(trial.code, trial.threads) for trial in store.missing()} == {("new", 2), ("cd" * 8, 1)}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.floats(0, 1), lines=st.integers(1, 4))
def test_any_truncation_loses_at_most_the_last_line(tmp_path_factory, make_record, cut, lines):
    store = RunStore(tmp_path_factory.mktemp("run"))
    records = [make_record("ok" if seed % 2 else "oom", seed=seed) for seed in range(lines)]
    data = b"".join(encode_line(record) for record in records)
    kept = data[: round(cut * len(data))]
    (store.folder / "records.jsonl").write_bytes(kept)
    whole = kept.count(b"\n")
    assert store.records() in (records[:whole], records[: whole + 1])
    before, torn = store.records(), store.torn
    assert torn == (0 if len(before) > whole else len(kept) - kept.rfind(b"\n") - 1)

    store.append(make_record(seed=99))
    assert store.torn == 0
    assert [record.trial.seed for record in store.records()] == [record.trial.seed for record in before] + [99]
    lost = store.folder / "records.torn"
    assert (len(lost.read_bytes()) - 1 if lost.exists() else 0) == torn


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_no_flipped_byte_goes_unseen(make_record, position, flip):
    line = bytearray(encode_line(make_record())[:-1])
    line[int(position * len(line))] ^= flip
    with pytest.raises(KvbenchError, match="corrupt"):
        decode_lines(bytes(line) + b"\n", "records.jsonl")


def test_a_corrupt_middle_line_stops_resuming_and_gating(store, make_record):
    store.folder.mkdir()
    lines = [encode_line(make_record(seed=seed)) for seed in range(3)]
    lines[1] = lines[1].replace(b'"status":"ok"', b'"status":"no"')
    (store.folder / "records.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(KvbenchError, match="line 2 is corrupt") as resuming:
        store.finished_ids()
    assert resuming.value.exit_code == 2
    with pytest.raises(UndecidedError, match="line 2 is corrupt"):
        read_records(store.folder)


def test_no_records_is_undecided(tmp_path):
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(UndecidedError, match="no records"):
            read_records(path)


def test_another_schema_asks_for_another_folder(store, make_trial):
    store.plan([make_trial()], "quick")
    path = store.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": SCHEMA + 1, "novel": 1}))
    with pytest.raises(KvbenchError, match="new folder"):
        RunStore(store.folder)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(KvbenchError, match="damaged"):
        RunStore(store.folder)


def test_a_file_is_no_folder(tmp_path, make_trial):
    (tmp_path / "file").write_text("")
    with pytest.raises(KvbenchError, match="cannot make folder"):
        RunStore(tmp_path / "file").plan([make_trial()], "quick")


def test_only_one_writer(store, make_record, make_trial, monkeypatch):
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.1)
    store.plan([make_trial()], "quick")
    other = RunStore(store.folder)
    with store.writing():
        store.append(make_record())
        with pytest.raises(KvbenchError, match="another run"):
            other.append(make_record())
    other.append(make_record())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="writers are forks")
def test_two_hundred_killed_writers_lose_nothing_that_was_reported(tmp_path, make_record):
    (tmp_path / "one.jsonl").write_bytes(encode_line(make_record()))
    root, program = Path(__file__).parents[2], Path(__file__).with_name("killed_writers.py")
    command = [sys.executable, str(program), str(tmp_path / "one.jsonl"), str(tmp_path), "200"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[2]) > 200, done.stdout
    store = RunStore(tmp_path / "0")
    there = len(store.records())
    store.append(make_record(seed=10**6))  # the lock died with its holder
    assert len(store.records()) == there + 1 and store.torn == 0


def test_a_failed_replacement_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    replace_file(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", lambda *_: 1)
    with pytest.raises(OSError, match="full"):
        append_bytes(tmp_path / "file", b"abc")


def test_of_records_with_one_id_the_last_is_read(tmp_path, make_record):
    (tmp_path / "records.jsonl").write_bytes(b"".join(encode_line(make_record(seed=i)) for i in range(5)) * 3)
    assert [record.trial.seed for record in read_records(tmp_path)] == [0, 1, 2, 3, 4]
