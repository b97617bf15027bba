"""What the verbs that measure have in common: which trials, by what, and where their records go."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from kvbench.cli.console import out, say
from kvbench.cli.early import refuse_slips
from kvbench.cli.options import DataDir, Device, Whole
from kvbench.errors import EXIT_OK, EXIT_SOME_FAILED, KvbenchError

if TYPE_CHECKING:
    from kvbench.runs.execution import Executor
    from kvbench.runs.progress import RunProgress
    from kvbench.runs.records import Record
    from kvbench.runs.runner import Runner
    from kvbench.runs.suites import Suite
    from kvbench.runs.trials import Trial


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Selection:
    """What of a suite is measured."""

    model: Annotated[str | None, Parameter(help="Run this model instead of the suite's.")] = None
    compressor: Annotated[list[str] | None, Parameter(help="Run these specs instead of the suite's; repeatable.")] = (
        None
    )
    dtype: Annotated[str | None, Parameter(help="float32, bfloat16 or float16; default: the suite's.")] = None
    data_dir: DataDir = None
    profile: Annotated[str | None, Parameter(help="Values of this profile of a suite file.")] = None
    yes: Annotated[bool, Parameter(help="Take a matrix of more than 1,000 cells.")] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EqualBytes:
    """Settings that are solved for, so that methods meet at the same size."""

    at: Annotated[str | None, Parameter(help="Equal bytes: solve methods for these bits, as in bits=2,3,4.")] = None
    methods: Annotated[str | None, Parameter(help="With --at: all (the default), or names separated by commas.")] = None
    exact: Annotated[
        Literal["model", "float16", "bfloat16"] | None,
        Parameter(help="With --at: dtype of every method's exact tokens; default: the suite's."),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and by what the model runs."""

    shard: Annotated[
        str | None, Parameter(help="Only every n-th trial, from the i-th on, as in 2/4; kvbench merge joins the parts.")
    ] = None

    device: Device = "cpu"
    threads: Annotated[Whole, Parameter(help="Torch threads; 0 takes torch's own choice.")] = 0
    attention: Annotated[
        Literal["auto", "reference"], Parameter(help="Decode by the best kernel there is, or in plain torch.")
    ] = "auto"
    read: Annotated[
        Literal["auto", "absorb", "reconstruct"],
        Parameter(help="Attend in the latents where a codec can, or rebuild keys and values tile by tile."),
    ] = "auto"


def chosen_suite(name: str | None, selection: Selection, equal_bytes: EqualBytes) -> Suite:
    """The suite of that name, ``quick`` or ``frontier`` of None; torch is not needed: a misspelt name is told at once.

    Raises:
        KvbenchError: it does not exist or is wrong, or options do not go together.
    """
    from kvbench.runs.matrix import MOST_CELLS
    from kvbench.runs.suites import load_suite
    from kvbench.runs.targets import bit_targets
    from kvbench.storage.data_dir import use_data_dir

    use_data_dir(selection.data_dir)
    if equal_bytes.at is None and (equal_bytes.methods or equal_bytes.exact):
        raise KvbenchError("--methods and --exact say what is solved for equal bytes; add --at, as in --at bits=2,3,4")
    if equal_bytes.at is not None:
        bit_targets(equal_bytes.at)
    name = name if name is not None else "quick" if equal_bytes.at is None else "frontier"
    suite = load_suite(name, selection.profile, sys.maxsize if selection.yes else MOST_CELLS).narrowed(
        model=selection.model, compressors=selection.compressor, dtype=selection.dtype, exact=equal_bytes.exact
    )
    refuse_slips(compressors=suite.compressors, dtype=suite.dtype)
    for model in suite.models:
        refuse_slips(model=model)
    return suite


def runner_into(
    folder: Path,
    progress: RunProgress,
    execution: Execution,
    executor: Executor | None = None,
    memory_limit: int | None = None,
) -> Runner:
    """A runner whose records go to ``folder``; see :class:`kvbench.runs.runner.Runner`."""
    from kvbench.kernels.reading import Reading
    from kvbench.runs.runner import Runner
    from kvbench.runs.store import RunStore

    reading = Reading(execution.attention, execution.read)
    return Runner(
        RunStore(folder),
        progress,
        execution.device,
        execution.threads,
        reading=reading,
        executor=executor,
        memory_limit=memory_limit,
    )


def solved(runner: Runner, suite: Suite, equal_bytes: EqualBytes) -> Suite:
    """``suite`` with methods solved for equal bytes, if ``--at`` is given."""
    from kvbench.runs.frontier import solve_suite

    if equal_bytes.at is None:
        return suite
    suite, left_out = solve_suite(runner, suite, equal_bytes.methods or "all", equal_bytes.at)
    for reason in left_out:
        say(f"left out: {reason}")
    return suite


def print_records(records: list[Record], folder: Path, as_json: bool) -> int:
    """The table of what was measured, or the records themselves; the exit code."""
    from kvbench.report.tables import summary_table

    if as_json:
        for record in records:
            print(record.to_json())
    else:
        out.print(summary_table(records))
        say(f"records: {folder}/records.jsonl · report: kvbench report {shlex.quote(str(folder))}")
    return EXIT_SOME_FAILED if any(record.status != "ok" for record in records) else EXIT_OK


def print_plan(trials: list[Trial], earlier: list[Record], as_json: bool) -> int:
    """The trials, which of them are done, and how long the others may take."""
    from kvbench.runs.estimate import estimate

    finished = {record.id for record in earlier if record.status == "ok"}
    for trial in trials:
        state = "done" if trial.id in finished else "to do"
        as_text = f"{trial.id}  {state:5}  {trial.key}"
        print(json.dumps({"id": trial.id, "key": trial.key, "state": state}) if as_json else as_text)
    to_do = [trial for trial in trials if trial.id not in finished]
    expected = estimate(to_do, earlier)
    minutes = f": about {expected.seconds / 60:.1f} min for {expected.known} of them, by earlier records"
    say(f"{len(to_do)} of {len(trials)} trials to do{minutes if expected.known else ''}")
    return EXIT_OK
