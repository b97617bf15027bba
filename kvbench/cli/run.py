"""``kvbench run``: measure, and what of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kvbench.cli.console import err
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


def run(
    *,
    suite: Annotated[
        str | None,
        Parameter(
            help="quick (default), standard, full, ci, frontier, speed, capacity, ruler-1k, needles, fidelity, "
            "accuracy, undecided, eviction, thinking, healing, domain-matrix, wikitext or a .toml file."
        ),
    ] = None,
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
    from kvbench.runs.shards import Shard

    chosen, shard = chosen_suite(suite, selection, equal_bytes), Shard.parse(execution.shard)
    from kvbench.runs.progress import RunProgress  # torch comes with what follows: a misspelt suite need not wait

    folder = out_dir or Path("runs") / chosen.name
    with RunProgress(err, quiet) as progress:
        runner = runner_into(folder, progress, execution)
        chosen = solved(runner, chosen, equal_bytes)
        if dry_run:
            return print_plan(shard.of(runner.plan(chosen)), runner.store.records(), json_)
        records = runner.run(chosen, shard)
    return print_records(records, folder, json_)
