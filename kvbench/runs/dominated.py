"""Trials that need not be tried: a smaller one of the same kind has already run out of memory."""

from __future__ import annotations

from typing import Any

from kvbench.runs.canonical import content
from kvbench.runs.records import Record
from kvbench.runs.trials import Trial

SIZES = ("batch", "prompt", "length", "prefix")
"""Settings that take more memory when they grow."""

OUT_OF_ROOM = ("oom", "killed")
"""Statuses of trials for which memory was most likely too small."""

NOT_TRIED = "NotTried"
"""The type of failure of a trial that a smaller one stands for."""


def dominates(record: Record, trial: Trial) -> bool:
    """Whether ``record`` ran out of memory at no larger size than ``trial`` would have, all else the same."""
    small, large = record.trial, trial
    if record.status not in OUT_OF_ROOM or small.id == large.id or _kind(small) != _kind(large):
        return False
    before, after = (leaves(content(each.workload) | {"name": ""}) for each in (small, large))
    return before.keys() == after.keys() and all(
        after[path] >= value if path[-1] in SIZES and isinstance(value, int) else after[path] == value
        for path, value in before.items()
    )


def _kind(trial: Trial) -> Trial:
    """What must agree: everything but the workload and the text that it reads."""
    return trial.model_copy(update={"workload": None, "text_sha256": {}})


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every value within nested tables, by the names that lead to it."""
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, each in value.items() for key, leaf in leaves(each, (*path, name)).items()}
