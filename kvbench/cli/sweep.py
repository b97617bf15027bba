"""``kvbench sweep``: many trials, each in a process of its own, here or on a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from kvbench.cli.console import err, say
from kvbench.cli.measuring import (
    EqualBytes,
    Execution,
    Selection,
    chosen_suite,
    print_plan,
    print_records,
    runner_into,
    solved,
)
from kvbench.errors import EXIT_OK, EXIT_SOME_FAILED, KvbenchError, unknown

if TYPE_CHECKING:
    from kvbench.runs.execution import Executor

Seconds = Annotated[float, Parameter(validator=Number(gt=0, lte=1e7))]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Processes:
    """Where trials run, and how much time and memory they may take."""

    executor: Annotated[
        Literal["local", "ray"], Parameter(help="A process on this machine, or tasks of a Ray cluster.")
    ] = "local"
    ray_address: Annotated[
        str | None, Parameter(help="Of a running cluster, as host:port or auto; default: one that is started here.")
    ] = None
    timeout: Annotated[Seconds, Parameter(help="Seconds that one trial may take.")] = 4 * 3600.0
    stall: Annotated[Seconds, Parameter(help="Seconds that a local trial may go without a sign of life.")] = 1800.0
    memory_limit: Annotated[
        str | None, Parameter(help="Bytes that a trial's process may take, as in 2GiB; one that needs more is a row.")
    ] = None


def sweep(
    suite: Annotated[str, Parameter(help="A .toml file, most likely with a [matrix], or a built-in suite.")],
    /,
    *,
    selection: Selection = Selection(),
    equal_bytes: EqualBytes = EqualBytes(),
    execution: Execution = Execution(),
    processes: Processes = Processes(),
    out_dir: Annotated[Path | None, Parameter(name="--out", help="Results folder; default runs/<suite>.")] = None,
    dry_run: Annotated[bool, Parameter(help="Print the trials, and how long they may take, and stop.")] = False,
    plan: Annotated[bool, Parameter(help="Write the manifest, for kvbench trial, and stop.")] = False,
) -> int:
    """Measure a grid of settings, a fresh process a trial: one that hangs or dies is a row, and the rest goes on.

    A suite file may have axes, [matrix], whose values are put where {axis} stands, and leave cells out, [[exclude]].
    A trial larger than one that ran out of memory is not tried; kvbench report shows how far each compressor came.
    Finished trials are never redone.
    Exit codes: 0 ok, 2 usage, 4 some trials failed, 130 interrupted.
    """
    limit = _memory_limit(processes.memory_limit, execution.device)
    from kvbench.runs.shards import Shard

    chosen, shard = chosen_suite(suite, selection, equal_bytes), Shard.parse(execution.shard)
    from kvbench.runs.progress import RunProgress

    folder = out_dir or Path("runs") / chosen.name
    with RunProgress(err) as progress:
        runner = runner_into(folder, progress, execution, _executor(processes), limit)
        chosen = solved(runner, chosen, equal_bytes)
        if dry_run:
            return print_plan(shard.of(runner.plan(chosen)), runner.store.records(), as_json=False)
        if plan:
            runner.store.plan(shard.of(runner.plan(chosen)), chosen.name)
            say(f"planned: {folder}/manifest.json · each of its ids: kvbench trial {folder} ID")
            return EXIT_OK
        records = runner.run(chosen, shard)
    return print_records(records, folder, as_json=False)


def trial(
    folder: Annotated[Path, Parameter(help="Run folder with a manifest, as kvbench sweep --plan writes it.")],
    id_: Annotated[str, Parameter(name="ID", help="One of the manifest's trials.")],
    /,
) -> int:
    """Measure one planned trial, in this process, for launchers of any kind. Of a finished one nothing is done.

    Exit codes: 0 ok, 2 usage, 4 the trial failed, 130 interrupted.
    """
    from kvbench.runs.store import RunStore

    store = RunStore(folder)
    trials = store.manifest.trials if store.manifest else {}
    if not trials:
        raise KvbenchError(f"{folder} has no manifest; kvbench sweep SUITE --plan --out {folder} writes one")
    if id_ not in trials:
        raise unknown("trial", id_, trials)
    if id_ in store.finished_ids():
        say(f"{id_} is done")
        return EXIT_OK
    from kvbench.runs.progress import RunProgress
    from kvbench.runs.trial_child import TrialRequest, measure

    with RunProgress(err) as progress:
        progress.planned([trials[id_]], 0)
        progress.started(trials[id_])
        record = measure(TrialRequest(trial=trials[id_]), progress.stage)
        store.append(record)
        progress.ended(record)
    if record.status == "interrupted":
        raise KeyboardInterrupt
    return EXIT_OK if record.status == "ok" else EXIT_SOME_FAILED


def _memory_limit(text: str | None, device: str) -> int | None:
    from kvbench.hardware.memory_limit import require_memory_limits
    from kvbench.storage.units import byte_count

    if text is None:
        return None
    require_memory_limits(device)
    try:
        return byte_count(text)
    except ValueError as error:
        raise KvbenchError(f"--memory-limit: {error}") from error


def _executor(processes: Processes) -> Executor:
    from kvbench.runs.trial_processes import Limits, TrialProcesses

    if processes.executor == "local":
        return TrialProcesses(Limits(processes.timeout, processes.stall))
    from kvbench.runs.ray_cluster import RayCluster

    return RayCluster(processes.ray_address, processes.timeout)
