"""Running a suite: every trial that the store does not have yet ends in a record there, none lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kvbench.hardware.environment import provenance
from kvbench.kernels.reading import DEFAULT, Reading
from kvbench.measure.bench import ModelBench
from kvbench.measure.parts.part import TIMEOUT_S
from kvbench.runs.dominated import NOT_TRIED, dominates
from kvbench.runs.execution import Executor, InThisProcess, Listener, PlannedTrial
from kvbench.runs.measuring import Measurer
from kvbench.runs.records import Failure, Provenance, Record
from kvbench.runs.shards import WHOLE, Shard
from kvbench.runs.store import RunStore
from kvbench.runs.suites import Suite
from kvbench.runs.trials import Trial


@dataclass
class Runner:
    """Runs a suite into a store. ``executor`` measures; None: this process. No trial may take more than
    ``memory_limit`` bytes, which only executors that start processes keep."""

    store: RunStore
    listener: Listener
    device: str = "cpu"
    threads: int = 0
    probe_timeout_s: float = TIMEOUT_S
    reading: Reading = DEFAULT
    executor: Executor | None = None
    memory_limit: int | None = None
    _ended: list[Record] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._measurer = Measurer(self.listener.stage, self.device, self.threads, self.probe_timeout_s, self.reading)

    def plan(self, suite: Suite) -> list[Trial]:
        """See :meth:`Measurer.plan`."""
        trials = self._measurer.plan(suite)
        if self.memory_limit is None:
            return trials
        return [trial.model_copy(update={"memory_limit": self.memory_limit}) for trial in trials]

    def bench_for(self, model: str, dtype: str) -> ModelBench:
        """See :meth:`Measurer.bench_for`."""
        return self._measurer.bench_for(model, dtype)

    def run(self, suite: Suite, shard: Shard = WHOLE) -> list[Record]:
        """Run what the store does not have yet of a ``shard``; the records of its trials in the suite's order.

        A trial that is larger than one that ran out of memory, all else the same, is not tried: its record says so.

        Raises:
            KvbenchError: a spec, model or text that no trial could run with, or a results folder that cannot be used.
            KeyboardInterrupt: passed on after the trial at hand has its record.
        """
        trials = shard.of(self.plan(suite))
        self.store.plan(trials, suite.name)
        with self.store.writing():
            finished = self.store.finished_ids()
            self.listener.planned(trials, sum(trial.id in finished for trial in trials))
            to_do = [
                PlannedTrial(trial, suite.solved_for.get(trial.compressor, ()))
                for trial in trials
                if trial.id not in finished
            ]
            self._run(to_do)
        wanted = {trial.id for trial in trials}
        records = {record.id: record for record in self.store.records() if record.id in wanted}
        return [records[trial.id] for trial in trials if trial.id in records]

    def _run(self, to_do: Sequence[PlannedTrial]) -> None:
        executor = self.executor or InThisProcess(self._measurer)
        if self.executor is not None:
            self._measurer.release()
        for record in executor.run(self._not_dominated(to_do), self.listener):
            self._end(record)
            if record.status == "interrupted":
                raise KeyboardInterrupt

    def _not_dominated(self, to_do: Sequence[PlannedTrial]) -> Iterator[PlannedTrial]:
        """Asked for the next trial when it can begin: by then it is known what has run out of memory."""
        for planned in to_do:
            smaller = next((record for record in self._ended if dominates(record, planned.trial)), None)
            if smaller is None:
                yield planned
            else:
                self._end(_not_tried(planned, smaller))

    def _end(self, record: Record) -> None:
        self.store.append(record)
        self._ended.append(record)
        self.listener.ended(record)


def _not_tried(planned: PlannedTrial, smaller: Record) -> Record:
    failure = Failure(type=NOT_TRIED, message=f"not tried: {smaller.trial.key} ran out of memory at a smaller size")
    origin = Provenance(**provenance(planned.trial.device, datetime.now(UTC)))
    return Record.of(planned.trial, "oom", origin, failure=failure, solved_for=planned.solved_for)
