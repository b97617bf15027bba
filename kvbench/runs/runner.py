"""Running trials: one after another, each ending in a record, none lost."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import torch

from kvbench.compressors.compressor import Compressor, parse
from kvbench.errors import KvbenchError, PluginError
from kvbench.hardware.environment import provenance
from kvbench.kernels.reading import DEFAULT, Reading
from kvbench.measure.bench import ModelBench, dtype_named
from kvbench.measure.parts.part import TIMEOUT_S
from kvbench.models.registry import find as find_model
from kvbench.runs.canonical import digest
from kvbench.runs.code_identity import code_sha256, packages
from kvbench.runs.records import Failure, Provenance, Record, Status
from kvbench.runs.resolve import inputs_of, resolve
from kvbench.runs.shards import WHOLE, Shard
from kvbench.runs.store import RunStore
from kvbench.runs.suites import Suite, expand
from kvbench.runs.trials import Trial
from kvbench.storage.frozen import Frozen

OUT_OF_MEMORY = ("can't allocate memory", "out of memory")
"""How torch's allocators on CPU and GPU say it, also through a child's last words."""


class Listener(Protocol):
    """Hears how a run goes; the command line draws progress from it."""

    def planned(self, trials: Sequence[Trial], finished: int) -> None:
        """All trials are known, ``finished`` of them from an earlier run."""

    def stage(self, what: str, done: int, total: int) -> None:
        """Something inside a trial moves on."""

    def started(self, trial: Trial) -> None:
        """A trial begins."""

    def ended(self, record: Record) -> None:
        """A trial has its record."""


MOST_THREADS = 1024


@dataclass
class Runner:
    """Runs a suite into a store. Models are loaded one at a time, in the suite's order."""

    store: RunStore
    listener: Listener
    device: str = "cpu"
    threads: int = 0
    probe_timeout_s: float = TIMEOUT_S
    reading: Reading = DEFAULT

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= MOST_THREADS:
            raise KvbenchError(f"threads must be 1 to {MOST_THREADS}, or 0 for torch's own choice; got {self.threads}")
        self.threads = self.threads or torch.get_num_threads()
        torch.set_num_threads(self.threads)
        self._bench: ModelBench | None = None
        self._compressors: dict[str, Compressor] = {}  # of planned trials, by spec

    def plan(self, suite: Suite) -> list[Trial]:
        """Resolve every trial of ``suite``, each once; nothing is measured or written.

        Raises:
            KvbenchError: a name, spec, context or text that no trial could run with.
        """
        for model in suite.models:  # a misspelt name is told before the first model is loaded
            find_model(model)
        parsed = {spec: parse(spec) for spec in suite.compressors}
        self._compressors |= {str(compressor): compressor for compressor in parsed.values()}
        trials = [
            resolve(self.bench_for(model, suite.dtype), parsed[spec], workload, self.threads, suite.seed, self.reading)
            for model, spec, workload in expand(suite, lambda spec: parsed[spec].needs_calibration)
        ]
        return list({trial.id: trial for trial in trials}.values())  # two spellings of a spec are one trial

    def run(self, suite: Suite, shard: Shard = WHOLE) -> list[Record]:
        """Run what the store does not have yet of a ``shard``; the records of its trials in the suite's order.

        Raises:
            KvbenchError: a spec, model or text that no trial could run with, or a results folder that cannot be used.
            KeyboardInterrupt: passed on after the trial at hand has its record.
        """
        trials = shard.of(self.plan(suite))
        self.store.plan(trials, suite.name)
        with self.store.writing():
            finished = self.store.finished_ids()
            self.listener.planned(trials, sum(trial.id in finished for trial in trials))
            for trial in trials:
                if trial.id not in finished:
                    self._run_one(trial, suite.solved_for.get(trial.compressor, ()))
        wanted = {trial.id for trial in trials}
        records = {record.id: record for record in self.store.records() if record.id in wanted}
        return [records[trial.id] for trial in trials if trial.id in records]

    def _run_one(self, trial: Trial, solved_for: tuple[float, ...]) -> None:
        started = datetime.now(UTC)
        self.listener.started(trial)
        status: Status = "ok"
        failure: Failure | None = None
        results: dict[str, Frozen] = {}
        interrupt: KeyboardInterrupt | None = None
        try:
            results = self._measure(trial)
        except KeyboardInterrupt as error:
            status, failure, interrupt = "interrupted", Failure(type="KeyboardInterrupt", message="interrupted"), error
        except Exception as error:
            status, failure = _classify(error), _failure(error)
        origin = Provenance(**provenance(trial.device, started))
        record = Record.of(trial, status, origin, failure=failure, solved_for=solved_for, **results)
        self.store.append(record)
        self.listener.ended(record)
        if interrupt is not None:
            raise interrupt

    def _measure(self, trial: Trial) -> dict[str, Frozen]:
        bench = self.bench_for(trial.model, trial.dtype)
        inputs = inputs_of(trial.workload, trial.seed, self.probe_timeout_s)
        self.listener.stage("fitting", 0, 1)
        arm = bench.arm(self._compressors[trial.compressor], inputs.calibration, Reading.parse(trial.attention))
        results = {}
        for name, settings in trial.workload.parts.items():
            self.listener.stage(name, 0, 1)
            results[name] = settings.measure(bench, arm, inputs)
        return results

    def bench_for(self, model: str, dtype: str) -> ModelBench:
        """The loaded model; the one before it is released."""
        dtype = str(dtype_named(dtype)).removeprefix("torch.")
        if self._bench is None or (self._bench.name, self._bench.dtype) != (model, dtype):
            self._bench = None  # release the old weights before the new ones are loaded
            self.listener.stage(f"loading {model}", 0, 1)
            self._bench = ModelBench(model, dtype, self.device, self.listener.stage, self._baseline_code())
        return self._bench

    def _baseline_code(self) -> str:
        """Hash of the code, packages and thread count that decide what the uncompressed model predicts here."""
        none = parse("none")
        return digest([code_sha256(none, ("quality",), self.device), packages(none, self.device), self.threads])


def _classify(error: Exception) -> Status:
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY):
        return "oom"
    return "timeout" if isinstance(error, TimeoutError) else "failed"


def _failure(error: Exception) -> Failure:
    known = isinstance(error, KvbenchError | MemoryError | TimeoutError) and not isinstance(error, PluginError)
    trace = None if known else "".join(traceback.format_exception(error))
    return Failure(type=type(error).__name__, message=str(error) or type(error).__name__, traceback=trace)
