"""Two files of pytest-benchmark, of any project, judged as two versions' times are.

The times of two files were not measured in turns, and nothing takes out what the machine did between them: a change is
what is left when the interval of either median is allowed for, and files of two machines are not compared.
"""

from __future__ import annotations

import json
import math
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
    (machine, old), (other, new) = _read(before), _read(after)
    if machine != other:
        raise UndecidedError(f"{before} is of {machine}, {after} of {other}: their times are not comparable")
    return [_row(key, old.get(key), new.get(key), margin) for key in {**old, **new}]


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


def _read(path: Path) -> tuple[str, dict[str, list[float]]]:
    """The machine that a file is of, and the times of every benchmark, in seconds."""
    try:
        content = json.loads(path.read_text("utf-8"))
        times = {
            str(each["fullname"]): [float(time) for time in each["stats"].get("data") or ()]
            for each in content["benchmarks"]
        }
        if not all(0 < time < math.inf for each in times.values() for time in each):
            raise ValueError("times are positive numbers")
        return _machine(content["machine_info"]), times
    except OSError as error:
        raise UndecidedError(f"cannot read {path} ({error.strerror}); {FRESH}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UndecidedError(f"{path} is no file of pytest-benchmark; {FRESH}") from error


def _machine(info: dict[str, Any]) -> str:
    cpu = info.get("cpu") or {}
    return f"{cpu.get('brand_raw') or info.get('machine')} with {cpu.get('count')} processors"
