"""Trials in processes of their own: the same numbers, and ends of every kind as rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from kept_kernels import cache_with_kernels
from tiny_suite import HEAD, SUITE

from kvbench.cli import main as cli
from kvbench.report.memory_frontier import memory_frontiers
from kvbench.runs import fitted_apart, trial_child
from kvbench.runs import trial_processes as module
from kvbench.runs.dominated import NOT_TRIED
from kvbench.runs.execution import PlannedTrial
from kvbench.runs.runner import Runner
from kvbench.runs.stages import STAGES
from kvbench.runs.store import RunStore, read_records
from kvbench.runs.suites import parse_suite
from kvbench.runs.trial_child import RECORD, REQUEST, TrialRequest, measure
from kvbench.runs.trial_processes import Limits, TrialProcesses

HUGE, LIMIT = 1 << 20, 1 << 30
"""Rows whose keys of one layer take 8 GiB, and bytes that are enough for what is imported and two rows."""


class Silent:
    """Hears nothing."""

    def __getattr__(self, name: str):
        return lambda *_: None


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBENCH_CACHE", cache_with_kernels(tmp_path / "cache"))


def without_origin(record):
    return record.model_dump(exclude={"provenance", "checksum"})


def test_a_process_a_trial_gives_the_records_of_one_process(tmp_path, monkeypatch):
    suite = parse_suite(SUITE.replace('"none"', '"none", "int:bits=4"'), "s")
    here = Runner(RunStore(tmp_path / "a"), Silent(), threads=1).run(suite)
    apart = Runner(RunStore(tmp_path / "b"), Silent(), threads=1, executor=TrialProcesses()).run(suite)
    assert [record.status for record in apart] == ["ok", "ok"]
    assert list(map(without_origin, apart)) == list(map(without_origin, here))
    again = Runner(RunStore(tmp_path / "b"), Silent(), threads=1, executor=None)
    monkeypatch.setattr(again._measurer, "record", lambda *_: pytest.fail("measured what is done"))
    assert again.run(suite) == apart


class Child:
    """Stands for the process: does to the trial's folder what ``act`` does, and ends."""

    def __init__(self, act, said="Traceback\nImportError: no such thing\n"):
        self.act, self.said = act, said

    def run(self, folder, timeout_s, watch):
        return self.act(folder, timeout_s, watch)

    def errors(self):
        return self.said


def stalls(folder, timeout_s, watch):
    (folder / STAGES).write_text('["quality", 1, 2]\n["half a li')
    while True:
        watch()
        time.sleep(0.01)


def takes_too_long(folder, timeout_s, watch):
    raise TimeoutError


def is_interrupted(folder, timeout_s, watch):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("act", "status", "message"),
    [
        (stalls, "timeout", "said nothing for 0.1 s; its process was ended"),
        (takes_too_long, "timeout", "took longer than 9 s; its process was ended"),
        (is_interrupted, "interrupted", "interrupted"),
        (lambda *_: -signal.SIGKILL, "killed", "its process was ended by SIGKILL, most likely for memory"),
        (lambda *_: -signal.SIGSEGV, "killed", "its process was ended by SIGSEGV"),
        (lambda *_: 1, "failed", "its process ended with status 1: ImportError: no such thing"),
    ],
)
def test_every_end_is_a_row(make_trial, monkeypatch, act, status, message):
    monkeypatch.setattr(module, "CHILD", Child(act))
    planned = PlannedTrial(make_trial(), (3.0,))
    (record,) = TrialProcesses(Limits(trial_s=9, stall_s=0.1)).run([planned], Silent())
    assert (record.status, record.failure.message) == (status, message)
    assert record.trial == planned.trial and record.solved_for == (3.0,)


@pytest.mark.parametrize("status", [1, -signal.SIGABRT])
def test_a_process_whose_last_words_are_of_memory_ran_out_of_it(make_trial, monkeypatch, status):
    said = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\nbye\n"
    monkeypatch.setattr(module, "CHILD", Child(lambda *_: status, said))
    (record,) = TrialProcesses().run([PlannedTrial(make_trial())], Silent())
    assert record.status == "oom" and record.failure.message.endswith(": what():  std::bad_alloc")


def test_a_trial_that_needs_more_than_its_limit_is_a_row_and_the_next_runs(tmp_path):
    timed = (
        SUITE.replace('name = "w"', 'name = "rows-{rows}"') + "[workload.speed]\nprompt = 64\nrounds = 1\nwarmup = 0\n"
    )
    text = f'{timed}steps = 32\nbatch = "{{rows}}"\n[matrix]\nrows = [{HUGE}, {2 * HUGE}, 2]\n'
    runner = Runner(RunStore(tmp_path / "r"), Silent(), threads=1, executor=TrialProcesses(), memory_limit=LIMIT)
    records = runner.run(parse_suite(text, "s"))
    assert [record.status for record in records] == ["oom", "oom", "ok"], [record.failure for record in records]
    assert "allocate" in records[0].failure.message and records[1].failure.type == NOT_TRIED
    assert {record.trial.memory_limit for record in records} == {LIMIT}
    (frontier,) = memory_frontiers(records)
    assert frontier.rows[0].cells[0].text == f"2 ({HUGE:,} ✗)"
    free = Runner(RunStore(tmp_path / "free"), Silent(), threads=1).plan(parse_suite(text, "s"))
    assert free[-1].memory_limit is None and free[-1].id != records[-1].id


def test_larger_trials_are_not_tried_after_one_was_killed(tmp_path, monkeypatch):
    sizes = HEAD.replace('name = "w"', 'name = "tokens-{n}"') + '[workload.memory]\nprompt = "{n}"\npeaks = false\n'
    suite = parse_suite(f"{sizes}[matrix]\nn = [16, 32, 64]\n", "s")
    asked = []

    def dies_of_32(folder, timeout_s, watch):
        request = TrialRequest.model_validate_json((folder / REQUEST).read_bytes())
        asked.append(request.trial.workload.name)
        if request.trial.workload.name != "tokens-16":
            return -signal.SIGKILL
        (folder / RECORD).write_text(measure(request, lambda *_: None).to_json())
        return 0

    monkeypatch.setattr(module, "CHILD", Child(dies_of_32))
    runner = Runner(RunStore(tmp_path / "r"), Silent(), threads=1, executor=TrialProcesses())
    assert [record.status for record in runner.run(suite)] == ["ok", "killed", "oom"]
    assert asked == ["tokens-16", "tokens-32"]
    last = RunStore(tmp_path / "r").records()[-1]
    assert last.failure.message == "not tried: random:llama | none | tokens-32 ran out of memory at a smaller size"


def test_any_launcher_may_run_a_planned_trial(tmp_path, capsys):
    def kvbench(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return ended.value.code, capsys.readouterr().err

    (tmp_path / "s.toml").write_text(SUITE)
    folder = tmp_path / "r"
    code, said = kvbench("trial", folder, "abc")
    assert code == 2 and f"has no manifest; kvbench sweep SUITE --plan --out {folder} writes one" in said
    assert kvbench("sweep", tmp_path / "s.toml", "--plan", "--threads", 1, "--out", folder)[0] == 0
    (trial,) = json.loads((folder / "manifest.json").read_text())["trials"]
    assert not (folder / "records.jsonl").exists()
    assert "unknown trial 'abc'" in kvbench("trial", folder, "abc")[1]
    assert kvbench("trial", folder, trial)[0] == 0
    (record,) = read_records(folder)
    assert (record.id, record.status) == (trial, "ok")
    assert kvbench("trial", folder, trial) == (0, f"{trial} is done\n")
    assert len(read_records(folder)) == 1


def test_other_code_than_planned_with_is_refused(make_trial, tmp_path, monkeypatch):
    runner = Runner(RunStore(tmp_path), Silent(), threads=1)
    (trial,) = runner.plan(parse_suite(SUITE, "s"))
    record = measure(TrialRequest(trial=trial.model_copy(update={"code": "ab" * 32})), lambda *_: None)
    assert record.status == "failed" and "was planned with other code than here; plan again" in record.failure.message


def test_a_sweep_that_is_killed_twice_ends_complete(tmp_path):
    (tmp_path / "s.toml").write_text(SUITE.replace('"none"', '"int:bits={b}"') + "\n[matrix]\nb = [2, 4, 8]\n")
    folder = tmp_path / "r"
    command = [
        sys.executable,
        "-m",
        "kvbench",
        "sweep",
        str(tmp_path / "s.toml"),
        "--threads",
        "1",
        "--out",
        str(folder),
    ]
    for done in (1, 2):
        sweep = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
        while not (folder / "records.jsonl").exists() or len(read_records(folder)) < done:
            assert sweep.poll() is None, "ended before it was killed"
            time.sleep(0.02)
        os.killpg(sweep.pid, signal.SIGKILL)
        sweep.wait()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    records = read_records(folder)
    assert sorted(record.trial.compressor for record in records) == ["int:bits=2", "int:bits=4", "int:bits=8"]
    assert all(record.status == "ok" for record in records)
    assert len((folder / "records.jsonl").read_text().splitlines()) == 3, "nothing was measured twice"


def test_a_trial_that_is_ended_while_it_is_fitted_leaves_nothing(tmp_path, monkeypatch):
    """Its process is killed, and cannot clear up; the folder of the fit stayed behind."""
    limited = SUITE.replace('"none"', '"pca:rank=0.5+int:bits=4"')
    runner = Runner(RunStore(tmp_path / "r"), Silent(), threads=1, memory_limit=1 << 40)
    *_, trial = runner.plan(parse_suite(limited, "s"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder, fitted_in = tmp_path / "trial", []
    folder.mkdir()
    (folder / REQUEST).write_text(TrialRequest(trial=trial).model_dump_json())

    def is_ended(fit: Path, timeout_s: float, watch) -> int:
        fitted_in.append(fit)
        raise KeyboardInterrupt

    monkeypatch.setattr(fitted_apart, "FITTER", Child(is_ended))
    trial_child._work(folder)
    assert [fit.parent for fit in fitted_in] == [folder]
    assert json.loads((folder / RECORD).read_text())["status"] == "interrupted"


def test_what_a_compressor_is_fitted_in_does_not_count_for_its_trial(tmp_path):
    """Whether it ran was decided by which statistics happened to be in the cache folder."""
    wide = SUITE.replace("random:llama", "random:llama?vocab=100000,context=2048").replace("windows = 2", "windows = 1")
    wide = wide.replace("length = 64", "length = 2048").replace('"none"', '"pca:rank=0.5+int:bits=4"')
    wide += "[workload.memory]\nprompt = 64\npeaks = false\n"
    runner = Runner(RunStore(tmp_path / "r"), Silent(), threads=1, executor=TrialProcesses(), memory_limit=LIMIT)
    (record,) = runner.run(parse_suite(wide, "s"))
    assert record.status == "ok", record.failure
    assert record.trial.compressor.startswith("pca:") and record.memory.allocated.total == record.memory.predicted_bytes
