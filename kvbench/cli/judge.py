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
    explain: Annotated[bool, Parameter(help="Say in sentences what changed and what may.")] = False,
    markdown: Annotated[
        Path | None, Parameter(help="Also write the verdicts to this file, for a comment on a pull request.")
    ] = None,
    json_: Json = False,
) -> int:
    """Compare results with a committed baseline: bytes exactly, KLD and perplexity within its tolerances.

    Exit codes: 0 same, 1 changed or missing, 3 cannot decide (baseline missing, corrupt or incomparable).
    """
    from kvbench.gate.baseline import read_baseline, write_baseline
    from kvbench.gate.explain import explain as in_words
    from kvbench.gate.explain import markdown as as_markdown
    from kvbench.gate.gate import gate as judge
    from kvbench.runs.store import read_records
    from kvbench.storage.files import replace_file

    records = read_records(results)
    if update and baseline.is_dir():
        raise KvbenchError(f"{baseline} is a folder; name the file to write, as in {baseline}/baseline.json")
    if update:
        write_baseline(records, baseline)
        say(f"baseline written: {baseline} ({len(records)} records)")
        return EXIT_OK
    accepted = read_baseline(baseline)
    report = judge(records, accepted)
    if markdown is not None:
        replace_file(markdown, as_markdown(report).encode())
    print(report.to_json() if json_ else in_words(report, accepted) if explain else report.render())
    return report.exit_code


def compare(
    a: Results, b: Results, /, *, same: Annotated[bool, Parameter(help="Show unchanged metrics too.")] = False
) -> int:
    """Two results folders side by side: bytes, KLD, perplexity and speed with a verdict each.

    Two .json files of pytest-benchmark, of any project, are compared by their times: a line for each benchmark.
    """
    if (a.suffix, b.suffix) == (".json", ".json"):
        from kvbench.gate.benchmark_files import compare_benchmarks
        from kvbench.gate.times import TimeVerdict, explained

        for row in compare_benchmarks(a, b):
            if same or row.verdict is not TimeVerdict.SAME:
                out.print(explained(row), highlight=False, markup=False, soft_wrap=True)
        return EXIT_OK
    from kvbench.gate.compare import compare as judge
    from kvbench.gate.table import verdict_table

    rows = judge(some_records(a), some_records(b))
    out.print(verdict_table(rows, hide_same=not same))
    return EXIT_OK
