"""Two files of pytest-benchmark, of any project, judged as two versions' times are.

The times of two files were not measured in turns, and nothing takes out what the machine did between them: a change is
what is left when the interval of either median is allowed for, and files of two machines are not compared.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from kvbench.errors import UndecidedError
from kvbench.gate.times import LEAST_ROUNDS, MARGIN, TimeRow, TimeVerdict, row_of
from kvbench.measure.statistics import median_interval

FRESH = "pytest --benchmark-json=FILE writes one"


def compare_benchmarks(before: Path, after: Path, margin: float = MARGIN) -> list[TimeRow]:
    """A row for every benchmark of either file.

    Raises:
        UndecidedError: a file cannot be read, is none of pytest-benchmark's, or is of another machine than the other.
    """
    old, new = _read(before), _read(after)
    if (machines := [_machine(each) for each in (old, new)])[0] != machines[1]:
        raise UndecidedError(f"{before} is of {machines[0]}, {after} of {machines[1]}: their times are not comparable")
    times = [{each["fullname"]: each["stats"].get("data") or [] for each in side["benchmarks"]} for side in (old, new)]
    return [_row(key, times[0].get(key), times[1].get(key), margin) for key in {**times[0], **times[1]}]


def _row(key: str, before: list[float] | None, after: list[float] | None, margin: float) -> TimeRow:
    for times, name in ((before, "first"), (after, "second")):
        if times is None or len(times) < LEAST_ROUNDS:
            rounds = "not" if times is None else f"with {len(times)} rounds, {LEAST_ROUNDS} are needed,"
            return TimeRow(key, TimeVerdict.NOT_MEASURED, note=f"{rounds} in the {name} file")
    assert before is not None and after is not None
    low, high = median_interval(before), median_interval(after)
    assert low is not None and high is not None
    change = (median(after) / median(before), high[0] / low[1], high[1] / low[0])
    return row_of(key, (change[0] - 1, change[1] - 1, change[2] - 1), margin)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
        _ = [(each["fullname"], each["stats"]["median"]) for each in content["benchmarks"]], content["machine_info"]
    except OSError as error:
        raise UndecidedError(f"cannot read {path} ({error.strerror}); {FRESH}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UndecidedError(f"{path} is no file of pytest-benchmark; {FRESH}") from error
    return content


def _machine(content: dict[str, Any]) -> str:
    info = content["machine_info"]
    cpu = info.get("cpu") or {}
    return f"{cpu.get('brand_raw') or info.get('machine')} with {cpu.get('count')} processors"
