"""The processes of :mod:`kvbench.runs.trial_processes`: each measures one trial that was planned elsewhere."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from kvbench.errors import KvbenchError
from kvbench.hardware.environment import look_up_once
from kvbench.hardware.memory_limit import limited_memory
from kvbench.hardware.worker import serve
from kvbench.kernels.reading import Reading
from kvbench.measure.bench import Report
from kvbench.measure.parts.part import TIMEOUT_S
from kvbench.runs.measuring import Measurer
from kvbench.runs.records import Record
from kvbench.runs.trials import Trial
from kvbench.storage.files import replace_file
from kvbench.storage.frozen import Frozen

REQUEST, STAGES, RECORD = "request.json", "stages.jsonl", "record.json"
"""In a folder of one trial: what to measure, what goes on (three values of a stage a line), what came out."""


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
    """Measures trials of a plan that another process made, if this one would plan the same, within their memory."""

    def _measure(self, trial: Trial) -> dict[str, Frozen]:
        with nullcontext() if trial.memory_limit is None else limited_memory(trial.device, trial.memory_limit):
            return self._measure_planned(trial)

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
    with (folder / STAGES).open("a", encoding="utf-8", buffering=1) as stages:

        def stage(*values: Any) -> None:
            stages.write(json.dumps(values) + "\n")

        stage("starting", 0, 1)
        record = measure(TrialRequest.model_validate_json((folder / REQUEST).read_bytes()), stage)
    replace_file(folder / RECORD, record.to_json().encode())
    return 0


def main() -> None:
    """Measure in every folder that is named on standard input."""
    look_up_once()
    serve(_work)
