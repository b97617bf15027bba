"""``kvbench gate-times``: is one version of the code slower than another?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from kvbench.cli.console import err, out, say
from kvbench.cli.options import Json, Whole
from kvbench.errors import KvbenchError

if TYPE_CHECKING:
    from kvbench.gate.times import TimeRow


def gate_times(
    *,
    base: Annotated[Path, Parameter(help="Checkout of the version to compare with, or a Python that has it.")],
    head: Annotated[Path, Parameter(help="Checkout of the version under test.")] = Path(),
    suite: Annotated[str, Parameter(help="Suite with a speed part.")] = "times",
    rounds: Annotated[Whole, Parameter(validator=Number(gte=6, lte=1000), help="Rounds of either side.")] = 10,
    margin: Annotated[float, Parameter(validator=Number(gt=0, lt=1), help="Share that counts as nothing.")] = 0.05,
    threads: Annotated[Whole, Parameter(help="Torch threads; 0 takes torch's own choice.")] = 0,
    strict: Annotated[bool, Parameter(help="Ambiguous times cannot pass: exit code 3.")] = False,
    json_: Json = False,
) -> int:
    """Time two versions of kvbench in turns, in fresh processes, each against stock transformers in the same process.

    A slowdown is told when a second series of rounds finds it again. Nothing else should run meanwhile.
    Exit codes: 0 not slower, 1 slower, 3 cannot decide (not measured on both sides; with --strict also ambiguous).
    """
    from kvbench.gate.interleaved import Version
    from kvbench.gate.interleaved import rounds as measured
    from kvbench.gate.times import TimeVerdict, confirmed, exit_code, explained, judge_times
    from kvbench.runs.progress import counted
    from kvbench.runs.suites import load_suite, suite_path

    content, path = load_suite(suite), suite_path(suite)
    if not any(workload.speed for workload in content.workload):
        raise KvbenchError(f"suite {suite} has no speed part to time")
    sides = Version(base), Version(head)
    for side in sides:
        side.check()

    def judged(name: str) -> list[TimeRow]:
        with counted(err, name) as report:
            series = measured(*sides, path, rounds, threads, lambda done: report(name, done, rounds))
        return [judge_times(key, each, margin) for key, each in series.items()]

    rows = judged("timing")
    if any(row.verdict is TimeVerdict.SLOWER for row in rows):
        say("slower once; measured again")
        rows = confirmed(rows, {row.key: row for row in judged("timing again")})
    code = exit_code(rows, strict)
    if json_:
        print(json.dumps({"exit_code": code, "rows": [asdict(row) for row in rows]}, indent=1))
    for row in () if json_ else rows:
        out.print(explained(row, margin), highlight=False, markup=False, soft_wrap=True)
    if not rows:
        say("nothing was measured on both sides; kvbench run with this suite says why")
    return code
