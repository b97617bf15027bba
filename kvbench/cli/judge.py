"""``kvbench gate`` and ``kvbench compare``: results against a baseline, and against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kvbench.cli.console import out, say
from kvbench.cli.options import Json, Results
from kvbench.cli.results import some_records
from kvbench.errors import EXIT_OK, KvbenchError


def gate(
    results: Results,
    /,
    *,
    baseline: Annotated[Path, Parameter(help="Baseline file to compare with.")],
    update: Annotated[bool, Parameter(help="Write the results as the new baseline instead of comparing.")] = False,
    json_: Json = False,
) -> int:
    """Compare results with a committed baseline: bytes exactly, KLD and perplexity within its tolerances.

    Exit codes: 0 same, 1 changed or missing, 3 cannot decide (baseline missing, corrupt or incomparable).
    """
    from kvbench.gate.baseline import read_baseline, write_baseline
    from kvbench.gate.gate import gate as judge
    from kvbench.runs.store import read_records

    records = read_records(results)
    if update and baseline.is_dir():
        raise KvbenchError(f"{baseline} is a folder; name the file to write, as in {baseline}/baseline.json")
    if update:
        write_baseline(records, baseline)
        say(f"baseline written: {baseline} ({len(records)} records)")
        return EXIT_OK
    report = judge(records, read_baseline(baseline))
    print(report.to_json() if json_ else report.render())
    return report.exit_code


def compare(
    a: Results, b: Results, /, *, same: Annotated[bool, Parameter(help="Show unchanged metrics too.")] = False
) -> int:
    """Two results folders side by side: bytes, KLD, perplexity and speed with a verdict each."""
    from kvbench.gate.compare import compare as judge
    from kvbench.gate.table import verdict_table

    rows = judge(some_records(a), some_records(b))
    out.print(verdict_table(rows, hide_same=not same))
    return EXIT_OK
