"""Fitting in a process of its own, for trials whose memory is limited.

A compressor is fitted once, ahead of use. What its calibration takes is no part of what a model and its cache run in,
so the trial's process loads the fitted plan, as one that serves would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from kvbench.compressors.compressor import Compressor, parse
from kvbench.compressors.methods.saved import PLAN, Saved
from kvbench.compressors.plan_file import dump_plan
from kvbench.hardware.environment import look_up_once
from kvbench.hardware.worker import Worker, serve
from kvbench.measure.bench import Report
from kvbench.runs.measuring import Measurer
from kvbench.runs.resolve import inputs_of
from kvbench.runs.stages import Stages, written_stages
from kvbench.runs.trials import Trial
from kvbench.storage.files import replace_file

TRIAL = "trial.json"
FITTER = Worker("kvbench.runs.fitted_apart", {})


@contextmanager
def fitted_apart(trial: Trial, stage: Report) -> Iterator[Compressor]:
    """The compressor of ``trial`` as a fitted plan, which is in reach within the ``with`` block.

    The compressor itself where nothing is calibrated, and where fitting fails: it fails again where that is recorded.
    """
    compressor = parse(trial.compressor)
    if not compressor.needs_calibration:
        yield compressor
        return
    with TemporaryDirectory(prefix="kvbench-fit-") as name:
        folder = Path(name)
        (folder / TRIAL).write_text(trial.model_dump_json(), "utf-8")
        FITTER.run(folder, math.inf, Stages(folder, stage, math.inf).read)
        FITTER.stop()  # what it has imported is no longer needed
        yield Compressor((Saved(name),), compressor.spans) if (folder / PLAN).exists() else compressor


def _fit(folder: Path) -> int:
    trial = Trial.model_validate_json((folder / TRIAL).read_bytes())
    with written_stages(folder) as stage:
        bench = Measurer(stage, trial.device, trial.threads).bench_for(trial.model, trial.dtype)
        plan = bench.fit(parse(trial.compressor), inputs_of(trial.workload, trial.seed).calibration)
    replace_file(folder / PLAN, dump_plan(plan, bench.geometry, bench.name, bench.loaded.weights_sha256))
    return 0


def main() -> None:
    """Fit in every folder that is named on standard input."""
    look_up_once()
    serve(_fit)
