"""Processes of trials that measure nothing: what such a trial takes is what a sweep adds to every one.

They import what real ones do, and are forks of as large a process.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from kvbench.hardware.environment import look_up_once, provenance
from kvbench.hardware.worker import serve
from kvbench.runs.records import Failure, Provenance, Record
from kvbench.runs.trial_child import RECORD, REQUEST, TrialRequest
from kvbench.storage.files import replace_file


def _work(folder: Path) -> int:
    trial = TrialRequest.model_validate_json((folder / REQUEST).read_bytes()).trial
    where = Provenance(**provenance(trial.device, datetime.now(UTC)))
    record = Record.of(trial, "failed", where, failure=Failure(type="None", message="measures nothing"))
    replace_file(folder / RECORD, record.to_json().encode())
    return 0


def main() -> None:
    """Answer for every folder that is named on standard input."""
    look_up_once()
    serve(_work)
