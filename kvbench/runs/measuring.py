"""Measuring one trial: whatever happens ends in a record."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.hardware.environment import provenance
from kvbench.kernels.reading import DEFAULT, Reading
from kvbench.measure.arms import Arm
from kvbench.measure.bench import CalibrationSource, ModelBench, Report, dtype_named
from kvbench.measure.parts.part import TIMEOUT_S
from kvbench.models.registry import find as find_model
from kvbench.runs.canonical import digest
from kvbench.runs.code_identity import code_sha256, packages
from kvbench.runs.endings import failure_of, status_of
from kvbench.runs.records import Failure, Provenance, Record, Status
from kvbench.runs.resolve import inputs_of, resolve
from kvbench.runs.suites import Suite, expand
from kvbench.runs.trials import Trial
from kvbench.storage.frozen import Frozen

MOST_THREADS = 1024


@dataclass
class Measurer:
    """Plans and measures trials in this process. Models are loaded one at a time.

    ``stage`` hears what goes on inside a trial; ``threads`` 0 takes torch's own choice.
    """

    stage: Report
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

    def plan(self, suite: Suite) -> list[Trial]:
        """Resolve every trial of ``suite``, each once; nothing is measured or written.

        Raises:
            KvbenchError: a name, spec, context or text that no trial could run with.
        """
        for model in suite.models:  # a misspelt name is told before the first model is loaded
            find_model(model)
        parsed = {spec: parse(spec) for spec in suite.compressors}
        trials = [
            resolve(self.bench_for(model, suite.dtype), parsed[spec], workload, self.threads, suite.seed, self.reading)
            for model, spec, workload in expand(suite, lambda spec: parsed[spec].needs_calibration)
        ]
        return list({trial.id: trial for trial in trials}.values())  # two spellings of a spec are one trial

    def planned_again(self, trial: Trial) -> Trial:
        """The trial that the code, weights, texts and packages at hand would plan in the place of ``trial``."""
        bench = self.bench_for(trial.model, trial.dtype)
        return resolve(bench, parse(trial.compressor), trial.workload, self.threads, trial.seed, self.reading)

    def record(self, trial: Trial, solved_for: tuple[float, ...] = ()) -> Record:
        """Measure ``trial``. A record of status ``interrupted`` stands for a KeyboardInterrupt, which is not raised."""
        started = datetime.now(UTC)
        results: dict[str, Frozen] = {}
        status: Status = "ok"
        failure: Failure | None = None
        try:
            results = self._measure(trial)
        except KeyboardInterrupt:
            status, failure = "interrupted", Failure(type="KeyboardInterrupt", message="interrupted")
        except Exception as error:
            status, failure = status_of(error), failure_of(error)
        origin = Provenance(**provenance(trial.device, started))
        return Record.of(trial, status, origin, failure=failure, solved_for=solved_for, **results)

    def _measure(self, trial: Trial) -> dict[str, Frozen]:
        bench = self.bench_for(trial.model, trial.dtype)
        inputs = inputs_of(trial.workload, trial.seed, self.probe_timeout_s, trial.memory_limit is not None)
        self.stage("fitting", 0, 1)
        arm = self._arm(bench, trial, inputs.calibration)
        results = {}
        for name, settings in trial.workload.parts.items():
            self.stage(name, 0, 1)
            results[name] = settings.measure(bench, arm, inputs)
        return results

    def _arm(self, bench: ModelBench, trial: Trial, source: CalibrationSource) -> Arm:
        """The trial's compressor, fitted and attached."""
        return bench.arm(parse(trial.compressor), source, Reading.parse(trial.attention))

    def bench_for(self, model: str, dtype: str) -> ModelBench:
        """The loaded model; the one before it is released."""
        dtype = str(dtype_named(dtype)).removeprefix("torch.")
        if self._bench is None or (self._bench.name, self._bench.dtype) != (model, dtype):
            self._bench = None  # release the old weights before the new ones are loaded
            self.stage(f"loading {model}", 0, 1)
            self._bench = ModelBench(model, dtype, self.device, self.stage, self._baseline_code())
        return self._bench

    def release(self) -> None:
        """Let the loaded model go, before others load theirs."""
        self._bench = None

    def _baseline_code(self) -> str:
        """Hash of the code, packages and thread count that decide what the uncompressed model predicts here."""
        none = parse("none")
        return digest([code_sha256(none, ("quality",), self.device), packages(none, self.device), self.threads])
