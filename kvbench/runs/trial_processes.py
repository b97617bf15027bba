"""Trials in processes of their own: what hangs is ended, what dies takes no other with it, nothing is left behind."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from kvbench.hardware.environment import provenance
from kvbench.hardware.worker import Worker
from kvbench.measure.parts.part import TIMEOUT_S
from kvbench.runs.endings import tells_of_memory
from kvbench.runs.execution import Listener, PlannedTrial
from kvbench.runs.records import Failure, Provenance, Record, Status
from kvbench.runs.stages import Stages
from kvbench.runs.trial_child import RECORD, REQUEST, TrialRequest
from kvbench.storage.files import replace_file

CHILD = Worker("kvbench.runs.trial_child", {})


@dataclass(frozen=True)
class Limits:
    """Seconds that a trial may take in all, and without a word of what it does."""

    trial_s: float = 4 * 3600.0
    stall_s: float = 1800.0


@dataclass(frozen=True)
class TrialProcesses:
    """One trial after another, each in a fresh process."""

    limits: Limits = Limits()
    probe_timeout_s: float = TIMEOUT_S

    def run(self, trials: Iterable[PlannedTrial], listener: Listener) -> Iterator[Record]:
        """See :class:`kvbench.runs.execution.Executor`."""
        for planned in trials:
            listener.started(planned.trial)
            with TemporaryDirectory(prefix="kvbench-trial-") as folder:
                yield self._measured(planned, Path(folder), listener)

    def _measured(self, planned: PlannedTrial, folder: Path, listener: Listener) -> Record:
        request = TrialRequest(trial=planned.trial, solved_for=planned.solved_for, probe_timeout_s=self.probe_timeout_s)
        replace_file(folder / REQUEST, request.model_dump_json().encode())
        started, stages = datetime.now(UTC), Stages(folder, listener.stage, self.limits.stall_s)
        try:
            status = CHILD.run(folder, self.limits.trial_s, stages.read)
        except KeyboardInterrupt:
            return unmeasured(planned, "interrupted", "KeyboardInterrupt", "interrupted", started)
        except TimeoutError as error:
            reason = str(error) or f"took longer than {self.limits.trial_s:g} s"
            return unmeasured(planned, "timeout", "TimeoutError", f"{reason}; its process was ended", started)
        if (folder / RECORD).exists():
            return Record.model_validate_json((folder / RECORD).read_bytes())
        return _died(planned, status, started)


def unmeasured(planned: PlannedTrial, status: Status, kind: str, message: str, started: datetime) -> Record:
    """The record of a trial whose process could not make one."""
    origin = Provenance(**provenance(planned.trial.device, started))
    failure = Failure(type=kind, message=message)
    return Record.of(planned.trial, status, origin, failure=failure, solved_for=planned.solved_for)


def _died(planned: PlannedTrial, status: int, started: datetime) -> Record:
    said = CHILD.errors().strip().splitlines()
    name = signal.Signals(-status).name if status < 0 else ""
    end = f"its process was ended by {name}" if name else f"its process ended with status {status}"
    if (lack := next((line for line in reversed(said) if tells_of_memory(line)), None)) is not None:
        return unmeasured(planned, "oom", "MemoryError", f"{end}: {lack.strip()}", started)
    if name:
        likely = ", most likely for memory" if name == "SIGKILL" else ""
        return unmeasured(planned, "killed", "Killed", f"{end}{likely}", started)
    return unmeasured(planned, "failed", "RuntimeError", f"{end}: {said[-1] if said else 'it said nothing'}", started)
