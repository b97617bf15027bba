"""``kvbench report`` and ``kvbench leaderboard``: records and benchmarks as pages, charts and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kvbench.cli.results import some_records
from kvbench.errors import EXIT_OK


def report(
    results: Annotated[Path, Parameter(help="Results folder, a .jsonl file of records, or a .json of benchmarks.")],
    /,
    *,
    out_dir: Annotated[Path | None, Parameter(name="--out", help="Folder to write to; default: the results'.")] = None,
    commands: Annotated[bool, Parameter(help="Only print the command that measures each row.")] = False,
) -> int:
    """Write one self-contained HTML file and PNG charts of a results folder.

    Of a .json file of `pytest benchmarks/ --benchmark-json=FILE`, print the tables as Markdown.
    """
    if results.suffix == ".json":
        from kvbench.report.benchmarks import markdown, read_benchmarks

        print(markdown(read_benchmarks(results)), end="")
        return EXIT_OK
    records = some_records(results)
    if commands:
        from kvbench.report.reproduce import recipes

        for recipe in recipes(records):
            print("\n".join(f"{compressor}\t{command}" for compressor, command in recipe.rows))
        return EXIT_OK
    from kvbench.report.html import write_report
    from kvbench.runs.store import RunStore

    status = RunStore(results).status() if results.is_dir() else None
    folder = out_dir or (results if results.is_dir() else results.parent)
    for path in write_report(records, folder, status):
        print(path)
    return EXIT_OK


def leaderboard(
    results: Annotated[Path, Parameter(help="Folder of results folders.")],
    /,
    *,
    out_dir: Annotated[Path, Parameter(name="--out", help="Folder of the site.")] = Path("site"),
) -> int:
    """Write a static site of all results folders in a folder: sortable tables, and every folder's report.

    The same records give the same site, offline. Exit code 3 where a folder mixes revisions of the code.
    """
    from kvbench.report.leaderboard import write_leaderboard

    print(write_leaderboard(results, out_dir)[0])
    return EXIT_OK
