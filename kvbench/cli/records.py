"""``kvbench records`` and ``kvbench merge``: looking through results, handing them on, putting them together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from kvbench.cli.console import out, say
from kvbench.cli.listing import Listing
from kvbench.cli.options import Json, Results
from kvbench.cli.results import some_records
from kvbench.errors import EXIT_OK, KvbenchError

if TYPE_CHECKING:
    from kvbench.runs.fields import Value

SHOWN = ("model", "compressor", "workload", "status", "bits", "kld", "perplexity", "over_none", "score")


def records(
    results: Results,
    /,
    *,
    where: Annotated[
        str | None, Parameter(help="Only those for which this holds, as in 'bits<4 and kld<0.01'.")
    ] = None,
    fields: Annotated[bool, Parameter(help="Only list the names that --where knows, with the first value.")] = False,
    parquet: Annotated[Path | None, Parameter(help="Write all single values to this Parquet file.")] = None,
    json_: Json = False,
) -> int:
    """List records, or write them as a table for other programs: datasets.load_dataset opens the Parquet file."""
    from kvbench.runs.conditions import Condition
    from kvbench.runs.fields import fields_of

    rows = [fields_of(record) for record in some_records(results)]
    known = {name: value for row in reversed(rows) for name, value in row.items()}
    if fields:
        out.print(_table([{"field": name, "for example": value} for name, value in known.items()]))
        return EXIT_OK
    condition = None if where is None else Condition(where, known)
    chosen = [row for row in rows if condition is None or condition.holds(row)]
    if parquet is not None:
        _write_parquet(chosen, list(known), parquet)
        say(f"{len(chosen)} of {len(rows)} records: {parquet}")
    elif json_:
        print(json.dumps(chosen))
    else:
        known_ones = [name for name in SHOWN if any(row.get(name) is not None for row in rows)]
        same = _of_all(chosen, known_ones)
        if same:
            out.print(", ".join(f"{name} {value}" for name, value in same.items()), style="dim", highlight=False)
        columns = [name for name in known_ones if name not in same]
        out.print(_table([{name: row.get(name) for name in columns} for row in chosen] or [dict.fromkeys(columns)]))
        say(f"{len(chosen)} of {len(rows)} records")
    return EXIT_OK


def merge(
    sources: Annotated[list[Path], Parameter(help="Run folders of one suite.")],
    /,
    *,
    out_dir: Annotated[Path, Parameter(name="--out", help="Run folder that they are added to; may be new.")],
) -> int:
    """Put run folders of one suite together, such as those of --shard 1/4 … 4/4.

    Of a trial that was measured several times the first good record stays, and the trial is named.
    """
    from kvbench.runs.merging import merge as merged

    done = merged(sources, out_dir)
    for trial in done.conflicts:
        say(f"measured more than once: {trial}; the first record stays")
    say(f"{done.added} records added: {out_dir}")
    return EXIT_OK


def _of_all(rows: list[dict[str, Value]], names: list[str]) -> dict[str, Value]:
    """What is told once above the rows, because it is the same in all of several: words, the compressor never."""
    words = [name for name in names if name != "compressor" and len({row.get(name) for row in rows}) == 1]
    return {name: rows[0][name] for name in words if isinstance(rows[0].get(name), str)} if len(rows) > 1 else {}


def _table(rows: list[dict[str, Value]]) -> Listing:
    words = {name for row in rows for name, value in row.items() if isinstance(value, str)}
    return Listing(
        [*rows[0]], [[_shown(value) for value in row.values()] for row in rows], frozenset({*rows[0]} - words)
    )


def _shown(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_parquet(rows: list[dict[str, Value]], names: list[str], path: Path) -> None:
    if not rows:
        raise KvbenchError("no record fulfils the condition: there is nothing to write")
    from datasets import Dataset

    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict({name: [row.get(name) for row in rows] for name in names}).to_parquet(path)
