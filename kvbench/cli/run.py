"""``kvbench run``: measure, and what of it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from kvbench.cli.console import err, out, say
from kvbench.cli.options import DataDir, Device, Whole
from kvbench.errors import EXIT_OK, EXIT_SOME_FAILED, KvbenchError

if TYPE_CHECKING:
    from kvbench.runs.records import Record
    from kvbench.runs.trials import Trial


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is measured."""

    suite: Annotated[
        str | None,
        Parameter(
            help="quick (default), standard, full, ci, frontier, speed, capacity, ruler-1k, needles, fidelity, "
            "accuracy, domain-matrix, wikitext or a .toml file."
        ),
    ] = None
    model: Annotated[str | None, Parameter(help="Run this model instead of the suite's.")] = None
    compressor: Annotated[list[str] | None, Parameter(help="Run these specs instead of the suite's; repeatable.")] = (
        None
    )
    dtype: Annotated[str | None, Parameter(help="float32, bfloat16 or float16; default: the suite's.")] = None
    data_dir: DataDir = None


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


def run(
    *,
    selection: Selection = Selection(),
    equal_bytes: EqualBytes = EqualBytes(),
    execution: Execution = Execution(),
    out_dir: Annotated[Path | None, Parameter(name="--out", help="Results folder; default runs/<suite>.")] = None,
    dry_run: Annotated[bool, Parameter(help="Print the trials, and how long they may take, and stop.")] = False,
    json_: Annotated[bool, Parameter(name="--json", help="One JSON record per trial on stdout.")] = False,
    quiet: Annotated[bool, Parameter(help="No progress on stderr.")] = False,
) -> int:
    """Measure compressors on a model: bytes, speed and quality from the same compressed cache.

    Finished trials are kept in the results folder and never redone: run the same command again to resume.
    Exit codes: 0 ok, 2 usage, 4 some trials failed, 130 interrupted.
    """
    from kvbench.runs.suites import load_suite
    from kvbench.storage.data_dir import use_data_dir

    use_data_dir(selection.data_dir)
    if equal_bytes.at is None and (equal_bytes.methods or equal_bytes.exact):
        raise KvbenchError("--methods and --exact say what is solved for equal bytes; add --at, as in --at bits=2,3,4")
    chosen = selection.suite if selection.suite is not None else "quick" if equal_bytes.at is None else "frontier"
    suite = load_suite(chosen).narrowed(
        model=selection.model, compressors=selection.compressor, dtype=selection.dtype, exact=equal_bytes.exact
    )
    from kvbench.kernels.reading import Reading
    from kvbench.report.tables import summary_table
    from kvbench.runs.frontier import solve_suite
    from kvbench.runs.progress import RunProgress  # torch comes with these: a misspelt suite need not wait for it
    from kvbench.runs.runner import Runner
    from kvbench.runs.shards import Shard
    from kvbench.runs.store import RunStore

    folder = out_dir or Path("runs") / suite.name
    with RunProgress(err, quiet) as progress:
        reading = Reading(execution.attention, execution.read)
        runner = Runner(RunStore(folder), progress, execution.device, execution.threads, reading=reading)
        if equal_bytes.at is not None:
            suite, left_out = solve_suite(runner, suite, equal_bytes.methods or "all", equal_bytes.at)
            for reason in left_out:
                say(f"left out: {reason}")
        shard = Shard.parse(execution.shard)
        if dry_run:
            return _print_plan(shard.of(runner.plan(suite)), RunStore(folder).records(), json_)
        records = runner.run(suite, shard)
    if json_:
        for record in records:
            print(record.to_json())
    else:
        out.print(summary_table(records))
        say(f"records: {folder}/records.jsonl · report: kvbench report {shlex.quote(str(folder))}")
    return EXIT_SOME_FAILED if any(record.status != "ok" for record in records) else EXIT_OK


def _print_plan(trials: list[Trial], earlier: list[Record], as_json: bool) -> int:
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
