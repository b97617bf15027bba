"""What many trials cost beside their measuring: a sweep's share of each, and the report of all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from bench_harness import made_to_be_written
from racing import Race, replayed

from kvbench.hardware.worker import Worker
from kvbench.measure.bench import ModelBench
from kvbench.measure.turns import timed_in_turns
from kvbench.report.html import REPORT, write_report
from kvbench.runs import trial_processes
from kvbench.runs.execution import PlannedTrial
from kvbench.runs.jsonl import read_records
from kvbench.runs.records import Record
from kvbench.runs.store import RunStore
from kvbench.runs.trial_processes import TrialProcesses

pytestmark = pytest.mark.benchmark(timer=replayed)

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """How many records, and how often anything is timed."""

    records: int
    trials: int
    reports: int

    def __str__(self) -> str:
        return f"{self.records}-records"


CASES = {"tiny": [Case(20, 2, 1)], "quick": [Case(2000, 40, 1)], "full": [Case(2000, 200, 3)]}


class _Deaf:
    """Hears of nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@pytest.fixture(scope="module")
def trials(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Race]:
    """A trial in a process of its own, from the request to its record on the disk; what it measures takes no time."""
    store = RunStore(tmp_path_factory.mktemp("store"))
    record = made_to_be_written(ModelBench("random:llama"))
    store.plan([record.trial], "harness")
    executor, planned = TrialProcesses(), [PlannedTrial(record.trial)]
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    worker = Worker("idle_trials", {"PYTHONPATH": path})

    def run() -> None:
        for ended in executor.run(planned, _Deaf()):
            store.append(ended)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_processes, "CHILD", worker)
        times = timed_in_turns({"a trial of a sweep": run}, case.trials)
    worker.stop()
    assert [ended.failure.message for ended in store.records() if ended.failure] == ["measures nothing"]
    yield Race("around a trial", times)


@pytest.fixture(scope="module")
def report(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Race:
    """The report of many records: those in ``results/`` again and again, each time under another seed."""
    folder, records = tmp_path_factory.mktemp("report"), list(islice(_records(), case.records))
    name = f"report of {case.records:,} records"
    times = timed_in_turns({name: lambda: write_report(records, folder)}, case.reports, warmup=0)
    return Race("reports", times, facts={name: {"bytes_written": (folder / REPORT).stat().st_size}})


def test_trial(benchmark: Any, trials: Race) -> None:
    trials.report(benchmark, "a trial of a sweep")


def test_report(benchmark: Any, report: Race) -> None:
    report.report(benchmark, *report.times)


def _records() -> Iterator[Record]:
    real = [each for file in sorted(HERE.parent.glob("results/*/records.jsonl")) for each in read_records(file)]
    for seed in count():
        for record in real:
            trial = record.trial.model_copy(update={"seed": seed})
            yield record.model_copy(update={"trial": trial, "id": trial.id})
