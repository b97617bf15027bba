"""Times over weeks: where the speed of a benchmark changed, and by how much.

A series is one benchmark (model, compressor, workload and everything else that is not code) on one kind of machine.
Its points are times per token relative to stock transformers' in the same rounds, so that a machine that is slower one
night is no change. Levels are fitted by penalised least squares of the logarithms (PELT: Killick, Fearnhead and Eckley
2012, "Optimal detection of changepoints with a linear computational cost"), with the noise estimated from neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import numpy as np
import ruptures

from kvbench.runs.records import Record

LEAST_POINTS = 8
"""Points below which a series says nothing."""

SHORTEST_LEVEL = 3
"""Points of a level: one slow night is none."""

PENALTY = 3.0
"""In units of the noise's variance times the logarithm of the number of points; of BIC it is 2 for a new level."""

LEAST_NOISE = 0.002
"""Standard deviation of a relative time below which no machine repeats itself."""

GIB = 2**30


@dataclass(frozen=True)
class Point:
    """One measurement: when, of which commit, and its time as a share of stock transformers'."""

    measured: datetime
    commit: str
    time: float


@dataclass(frozen=True)
class Series:
    """One benchmark on one kind of machine, in the order in which it was measured."""

    key: str
    machine: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Change:
    """A new level: from ``commit`` on the time is ``factor`` times that of the level before."""

    commit: str
    measured: datetime
    factor: float


def series_of(records: Iterable[Record]) -> list[Series]:
    """The series of all records that were timed beside stock transformers, by key and machine."""
    by_series: dict[tuple[str, str, str], list[Point]] = {}
    for record in records:
        speed = record.speed
        if record.status != "ok" or speed is None or not speed.ratio_to_hf:
            continue
        commit = (record.provenance.git_sha or "unknown")[:10] + ("+" if record.provenance.git_dirty else "")
        point = Point(record.provenance.started, commit, 1 / speed.ratio_to_hf)
        benchmark = record.trial.without_code().id  # what is measured, whichever code measures it
        by_series.setdefault((record.trial.key, machine(record), benchmark), []).append(point)
    return [
        Series(key, machine, tuple(sorted(points, key=lambda point: point.measured)))
        for (key, machine, _), points in sorted(by_series.items())
    ]


def machine(record: Record) -> str:
    """What must agree before times may stand in one series: processor, cores, memory, accelerator, build of torch."""
    origin = record.provenance
    memory = round(origin.memory_total / GIB)
    return f"{origin.cpu}, {origin.cores} cores, {memory} GiB, {origin.device_name}, torch {origin.torch_build}"


def changes(series: Series) -> list[Change]:
    """Where its level changed; none in a series of few points."""
    if len(series.points) < LEAST_POINTS:
        return []
    logs = np.log([point.time for point in series.points])
    spread = np.median(np.abs(np.diff(logs))) * 1.4826 / math.sqrt(2)  # of normal noise; steps are few and do not count
    noise = max(float(spread), LEAST_NOISE)
    search = ruptures.Pelt(model="l2", min_size=SHORTEST_LEVEL, jump=1).fit(logs)
    starts = [0, *search.predict(pen=PENALTY * noise**2 * math.log(len(logs)))]
    levels = [float(np.median(logs[a:b])) for a, b in pairwise(starts)]
    return [
        Change(series.points[start].commit, series.points[start].measured, math.exp(after - before))
        for start, (before, after) in zip(starts[1:-1], pairwise(levels), strict=True)
    ]
