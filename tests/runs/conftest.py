"""Ways to make records like the whole one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from whole_record import MEMORY, PROVENANCE, QUALITY, SPEED, TRIAL

from kvbench.runs.records import Failure, Record
from kvbench.runs.trials import Trial


@pytest.fixture
def make_trial() -> Callable[..., Trial]:
    return lambda **changes: TRIAL.model_copy(update=changes)


@pytest.fixture
def make_record() -> Callable[..., Record]:
    def make(status: str = "ok", **changes: object) -> Record:
        trial = TRIAL.model_copy(update=changes)
        if status == "ok":
            return Record.of(trial, "ok", PROVENANCE, memory=MEMORY, speed=SPEED, quality=QUALITY)
        return Record.of(trial, status, PROVENANCE, failure=Failure(type="RuntimeError", message="it broke"))

    return make
