"""Trials as tasks of a Ray cluster: a fresh worker process each, placed by the processors that they compute on.

Every node needs the same kvbench, packages, models and texts: a trial that another node would plan otherwise fails
there and says what differs. A task whose worker or node is lost is begun anew elsewhere; only what the last one returns
is a record, so that no trial is lost and none counted twice.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kvbench.errors import KvbenchError
from kvbench.measure.parts.part import TIMEOUT_S
from kvbench.runs.execution import Listener, PlannedTrial
from kvbench.runs.records import Record, Status
from kvbench.runs.trial_child import TrialRequest, measure
from kvbench.runs.trial_processes import unmeasured
from kvbench.runs.trials import Trial

TIMED = ("speed", "capacity")
"""Parts whose times another trial on the same node would spoil."""

LOST_TASKS = 3
"""How often a task is begun anew after its worker or node was lost."""

WAIT_S, CONNECT_S = 0.5, 5.0


@dataclass(frozen=True)
class RayCluster:
    """Trials on the cluster at ``address`` (host:port, or "auto"); of None, on one that is started on this machine."""

    address: str | None = None
    trial_s: float = 4 * 3600.0
    probe_timeout_s: float = TIMEOUT_S

    def run(self, trials: Iterable[PlannedTrial], listener: Listener) -> Iterator[Record]:
        """See :class:`kvbench.runs.execution.Executor`.

        Raises:
            KvbenchError: Ray is not installed, nobody answers at the address, or no node can hold a trial.
        """
        ray = _ray()
        with _connected(ray, self.address):
            running = _Running(ray, self, listener)
            yield from running.records(iter(trials))


@dataclass(frozen=True)
class _Task:
    planned: PlannedTrial
    started: datetime
    deadline: float


class _Running:
    """The tasks that are on their way, by the references that Ray gives for their results."""

    def __init__(self, ray: Any, cluster: RayCluster, listener: Listener) -> None:
        self._ray, self._cluster, self._listener = ray, cluster, listener
        self._remote = ray.remote(max_calls=1, max_retries=LOST_TASKS)(_measured)
        self._tasks: dict[Any, _Task] = {}

    def records(self, trials: Iterator[PlannedTrial]) -> Iterator[Record]:
        """The records, as tasks end; a trial is taken when there is room for it."""
        waiting = next(trials, None)
        try:
            while waiting is not None or self._tasks:
                while waiting is not None and len(self._tasks) < self._room(waiting.trial):
                    self._begin(waiting)
                    waiting = next(trials, None)
                done, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=WAIT_S)
                for reference in done:
                    yield self._ended(reference)
                yield from self._overdue()
        except KeyboardInterrupt:
            for task in self._tasks.values():
                yield unmeasured(task.planned, "interrupted", "KeyboardInterrupt", "interrupted", task.started)
        finally:
            for reference in self._tasks:
                self._ray.cancel(reference, force=True)

    def _room(self, trial: Trial) -> int:
        """How many trials like this one the nodes that are up now can hold; one at least is left waiting in Ray."""
        needs = _needs(trial, self._nodes())
        of_nodes = (min(node.get(name, 0) // each for name, each in needs.items()) for node in self._nodes())
        return max(1, int(sum(of_nodes)))

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _begin(self, planned: PlannedTrial) -> None:
        needs = _needs(planned.trial, self._nodes())
        request = TrialRequest(
            trial=planned.trial, solved_for=planned.solved_for, probe_timeout_s=self._cluster.probe_timeout_s
        )
        options = {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0)}
        reference = self._remote.options(**options).remote(request.model_dump_json())
        self._tasks[reference] = _Task(planned, datetime.now(UTC), time.monotonic() + self._cluster.trial_s)
        self._listener.started(planned.trial)

    def _ended(self, reference: Any) -> Record:
        task, lost = self._tasks.pop(reference), self._ray.exceptions
        status: Status
        try:
            return Record.model_validate_json(self._ray.get(reference))
        except lost.OutOfMemoryError:
            status, why = "oom", "Ray ended its process: the node was out of memory"
        except lost.WorkerCrashedError:
            status, why = "killed", f"its process died {1 + LOST_TASKS} times"
        except lost.RayError as error:
            status, why = "failed", (str(error).strip().splitlines() or ["Ray could not run it"])[-1]
        return unmeasured(task.planned, status, "RayError", why, task.started)

    def _overdue(self) -> Iterator[Record]:
        late = [reference for reference, task in self._tasks.items() if time.monotonic() > task.deadline]
        for reference in late:
            self._ray.cancel(reference, force=True)
            task = self._tasks.pop(reference)
            why = f"took longer than {self._cluster.trial_s:g} s, waiting for a node included; its process was ended"
            yield unmeasured(task.planned, "timeout", "TimeoutError", why, task.started)


def _needs(trial: Trial, nodes: list[dict[str, float]]) -> dict[str, float]:
    """What a trial holds of a node: its threads and its accelerator, and of timed trials all processors of a node.

    Raises:
        KvbenchError: no node has that much.
    """
    accelerator = {"GPU": 1.0} if trial.device.startswith("cuda") else {}
    needs = {"CPU": float(trial.threads), **accelerator}
    fitting = [node for node in nodes if all(node.get(name, 0) >= each for name, each in needs.items())]
    if not fitting:
        wanted = f"{trial.threads} CPUs{' and a GPU' if accelerator else ''}"
        raise KvbenchError(f"no node of the Ray cluster has {wanted}, which {trial.key} needs; set --threads lower")
    if any(getattr(trial.workload, part) is not None for part in TIMED):
        needs["CPU"] = min(node["CPU"] for node in fitting)
    return needs


def _measured(request: str) -> str:
    """The task: runs on a node of the cluster."""
    return measure(TrialRequest.model_validate_json(request), lambda *_: None).to_json()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise KvbenchError("--executor ray needs Ray; pip install 'kvbench[ray]'") from error
    return ray


@contextlib.contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection to the cluster, kept where there is one already."""
    if ray.is_initialized():
        yield
        return
    if address is not None and address != "auto":
        _refuse_silence(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(address, log_to_driver=False, include_dashboard=None if address else False)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise KvbenchError(f"cannot join the Ray cluster at {address or 'this machine'}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _refuse_silence(address: str) -> None:
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        raise KvbenchError(f"Ray address {address!r} is not host:port or auto")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise KvbenchError(
            f"nobody answers at the Ray address {address} ({error}); begin a cluster with `ray start --head` there"
        ) from error
