"""What measures the trials of a run: this process, a fresh process for each, or a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvbench.runs.measuring import Measurer
from kvbench.runs.records import Record
from kvbench.runs.trials import Trial


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


@dataclass(frozen=True)
class PlannedTrial:
    """A trial, and the bits per element that its compressor was solved for."""

    trial: Trial
    solved_for: tuple[float, ...] = ()


class Executor(Protocol):
    """Measures trials."""

    def run(self, trials: Iterable[PlannedTrial], listener: Listener) -> Iterator[Record]:
        """The record of each trial, once, in the order in which they end; a trial is taken when it can begin.

        A record of status ``interrupted`` stands for a KeyboardInterrupt.
        """


@dataclass(frozen=True)
class InThisProcess:
    """One trial after another where the plan was made; models and baselines serve all."""

    measurer: Measurer

    def run(self, trials: Iterable[PlannedTrial], listener: Listener) -> Iterator[Record]:
        """See :class:`Executor`."""
        for planned in trials:
            listener.started(planned.trial)
            yield self.measurer.record(planned.trial, planned.solved_for)
