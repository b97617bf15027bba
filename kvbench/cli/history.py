"""``kvbench history``: did something get slower, over all runs so far?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from kvbench.cli.console import out, say
from kvbench.cli.options import Json
from kvbench.cli.results import some_records
from kvbench.errors import EXIT_OK, EXIT_REGRESSION, EXIT_UNDECIDED


def history(
    results: Annotated[list[Path], Parameter(help="Results folders of one suite, such as one a night.")],
    /,
    *,
    margin: Annotated[float, Parameter(validator=Number(gt=0, lt=1), help="Share that counts as nothing.")] = 0.05,
    json_: Json = False,
) -> int:
    """Find where times changed for good, per benchmark and kind of machine.

    Exit codes: 0 nothing is slower now, 1 the last change of a benchmark made it slower by more than the margin,
    3 no benchmark has been measured eight times on one kind of machine, or not beside stock transformers.
    """
    records = [record for folder in results for record in some_records(folder)]
    from kvbench.gate.history import LEAST_POINTS, changes, series_of  # slow to come: slips go first

    series = series_of(records)
    told = [each for each in series if len(each.points) >= LEAST_POINTS]
    by_series = [(each, changes(each)) for each in told]
    slower = [each.key for each, steps in by_series if steps and steps[-1].factor > 1 + margin]
    if json_:
        rows = [
            {"key": each.key, "machine": each.machine, "points": len(each.points), "changes": [vars(c) for c in steps]}
            for each, steps in by_series
        ]
        print(json.dumps(rows, indent=1, default=str))
    for each, steps in () if json_ else by_series:
        line = f"{each.key} ({each.machine}): {len(each.points)} runs"
        out.print(line, highlight=False, markup=False, soft_wrap=True)
        for step in steps:
            line = f"  {step.factor - 1:+.1%} since {step.commit} ({step.measured:%Y-%m-%d})"
            out.print(line, highlight=False, markup=False)
    if not told:
        longest = max((len(each.points) for each in series), default=0)
        say(f"no benchmark has {LEAST_POINTS} runs beside hf on one kind of machine; the most are {longest}")
        return EXIT_UNDECIDED
    say(f"slower now: {', '.join(slower)}" if slower else "nothing is slower now")
    return EXIT_REGRESSION if slower else EXIT_OK
