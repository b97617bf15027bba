"""The processes of :mod:`kvbench.runs.trial_processes`: each measures one trial that was planned elsewhere."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from kvbench.compressors.compressor import Compressor
from kvbench.errors import KvbenchError
from kvbench.hardware.environment import look_up_once
from kvbench.hardware.memory_limit import limited_memory
from kvbench.hardware.worker import serve
from kvbench.kernels.reading import Reading
from kvbench.measure.arms import Arm
from kvbench.measure.bench import CalibrationSource, ModelBench, Report
from kvbench.measure.parts.part import TIMEOUT_S
from kvbench.runs.fitted_apart import fitted_apart
from kvbench.runs.measuring import Measurer
from kvbench.runs.records import Record
from kvbench.runs.stages import written_stages
from kvbench.runs.trials import Trial
from kvbench.storage.files import replace_file
from kvbench.storage.frozen import Frozen

REQUEST, RECORD = "request.json", "record.json"
"""In a folder of one trial: what to measure, and what came out."""


class TrialRequest(Frozen):
    """A trial, and what its record is to say besides."""

    trial: Trial
    solved_for: tuple[float, ...] = ()
    probe_timeout_s: float = TIMEOUT_S


def measure(request: TrialRequest, stage: Report) -> Record:
    """The record of the trial, measured in this process; failed where other things would be measured than planned."""
    trial = request.trial
    reading = Reading.parse(trial.attention)
    measurer = PlannedElsewhere(stage, trial.device, trial.threads, request.probe_timeout_s, reading)
    return measurer.record(trial, request.solved_for)


class PlannedElsewhere(Measurer):
    """Measures one trial of a plan that another process made, if this one would plan the same, within its memory."""

    _fitted: Compressor | None = None
    """What is attached in the place of the trial's compressor."""

    def _measure(self, trial: Trial) -> dict[str, Frozen]:
        if trial.memory_limit is None:
            return self._measure_planned(trial)
        with fitted_apart(trial, self.stage) as self._fitted, limited_memory(trial.device, trial.memory_limit):
            return self._measure_planned(trial)

    def _arm(self, bench: ModelBench, trial: Trial, source: CalibrationSource) -> Arm:
        if self._fitted is None:
            return super()._arm(bench, trial, source)
        arm = bench.arm(self._fitted, source, Reading.parse(trial.attention))
        return replace(arm, name=trial.compressor)

    def _measure_planned(self, trial: Trial) -> dict[str, Frozen]:
        here = self.planned_again(trial).model_copy(update={"memory_limit": trial.memory_limit})
        if here.id != trial.id:
            differing = [name for name in Trial.model_fields if getattr(here, name) != getattr(trial, name)]
            raise KvbenchError(
                f"trial {trial.id} was planned with other {', '.join(differing)} than here; "
                "plan again, with one version of kvbench, packages, models and texts wherever trials run"
            )
        return super()._measure(trial)


def _work(folder: Path) -> int:
    # What this process and those that it starts leave behind goes with the folder, however they end.
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    with written_stages(folder) as stage:
        stage("starting", 0, 1)
        record = measure(TrialRequest.model_validate_json((folder / REQUEST).read_bytes()), stage)
    replace_file(folder / RECORD, record.to_json().encode())
    return 0


def main() -> None:
    """Measure in every folder that is named on standard input."""
    look_up_once()
    serve(_work)
