"""What compression costs, as charts: bits per element against KLD and against decoding speed.

One chart serves as picture (PNG, SVG) and as figure of the HTML report.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeGuard

from kvbench.measure.results import Interval
from kvbench.report.axes import Axis
from kvbench.report.columns import Cell
from kvbench.report.columns.quality import BELOW_NOISE, is_above_noise
from kvbench.report.figure import Figure, file_name
from kvbench.report.groups import Group, bits, is_baseline
from kvbench.report.growth_chart import growth
from kvbench.report.heatmaps import needle_map, task_map
from kvbench.report.numbers import MISSING
from kvbench.report.pareto import frontier
from kvbench.report.scatter import Line, Point, scatter
from kvbench.runs.records import Record

ALLOCATED = "bits per K and V element, all allocated bytes"
BODY_ONLY = "bits per K and V element of the compressed body"
BIT_TICKS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def figures(groups: Sequence[Group]) -> list[list[Figure]]:
    """The charts of each group, by what was measured. Names are distinct and safe for any disk."""
    names: list[str] = []
    for group in groups:
        names.append(file_name(group.title, names))
    drawn = [
        (
            _distortion(group, f"{name}-kld"),
            _speed_up(group, f"{name}-speed") or _token_time(group, f"{name}-speed"),
            task_map(group, f"{name}-tasks"),
            needle_map(group, f"{name}-needles"),
            growth(group, f"{name}-growth"),
        )
        for group, name in zip(groups, names, strict=True)
    ]
    return [[figure for figure in each if figure] for each in drawn]


def _distortion(group: Group, name: str) -> Figure | None:
    """KLD against bits. What lies at or below the noise floor stands at the lower edge, and says so."""
    rated = [(record, x, record.quality) for record, x in _sized(group) if record.quality]
    finite = [(record, x, quality) for record, x, quality in rated if math.isfinite(quality.kld_mean)]
    visible = [quality.kld_mean for _, _, quality in finite if is_above_noise(quality)]
    if not visible:
        return None
    edge = min(visible) / 2
    points = []
    for record, x, quality in finite:
        best = record.id in group.best
        if is_above_noise(quality):
            point = _point(group, record, x, quality.kld_mean, quality.kld_interval, best)
            points.append(replace(point, low=max(point.low, edge)))  # a logarithmic axis has no place for 0
        else:
            point = _point(group, record, x, edge, None, best)
            points.append(replace(point, name=f"{point.name} ({BELOW_NOISE})"))
    floor = max(quality.noise_floor_kld for _, _, quality in finite)
    lines = [Line("noise floor", floor)] if floor >= edge else []
    axis = Axis.over("KLD to the uncompressed model, nats per token", _extent(points, lines), logarithmic=True)
    return _figure(name, "Accuracy against size", "lower left", group, axis, points, lines)


def _speed_up(group: Group, name: str) -> Figure | None:
    """Decoding speed-up over ``none`` against bits."""
    points = [
        _point(group, record, x, record.speed.ratio_to_none, record.speed.ratio_to_none_interval)
        for record, x in _sized(group)
        if record.speed and _is_positive(record.speed.ratio_to_none)
    ]
    if not points:
        return None
    others = [
        (record.trial.compressor, record.speed.ratio_to_none)
        for record in group.records
        if is_baseline(record) and record.speed and record.trial.compressor != "none"
    ]
    lines = [Line("none", 1.0), *(Line(name, ratio) for name, ratio in others if _is_positive(ratio))]
    axis = Axis.over("decoding speed-up over none", _extent(points, lines), logarithmic=True)
    points = _with_best(points, [(point.x, -point.y) for point in points])
    return _figure(name, "Decoding speed against size", "upper left", group, axis, points, lines)


def _token_time(group: Group, name: str) -> Figure | None:
    """Mean time per output token against bits, for runs that were not timed against ``none``."""
    points = [
        _point(group, record, x, 1e3 * record.speed.tpot_s, None)
        for record, x in _sized(group)
        if record.speed and _is_positive(record.speed.tpot_s)
    ]
    if not points:
        return None
    lines = [
        Line(record.trial.compressor, 1e3 * record.speed.tpot_s)
        for record in group.records
        if is_baseline(record) and record.speed and _is_positive(record.speed.tpot_s)
    ]
    points = _with_best(points, [(point.x, point.y) for point in points])
    axis = Axis.over("time per output token, ms", _extent(points, lines))
    return _figure(name, "Decoding speed against size", "lower left", group, axis, points, lines)


def _sized(group: Group) -> Iterator[tuple[Record, float]]:
    """The compressors whose bits are known, with them."""
    for record in group.compressors:
        size = bits(record)
        if _is_positive(size):
            yield record, size


def _is_positive(value: float | None) -> TypeGuard[float]:
    """False for what a logarithmic axis cannot show."""
    return value is not None and math.isfinite(value) and value > 0


def _point(group: Group, record: Record, x: float, y: float, interval: Interval | None, best: bool = False) -> Point:
    numbers = {column.heading: _words(column.cell(record)) for column in group.summary}
    bounded = interval is not None and math.isfinite(interval.low) and _is_positive(interval.high)
    low, high = (min(interval.low, y), max(interval.high, y)) if interval and bounded else (y, y)
    return Point(record.trial.compressor, x, y, low, high, best, numbers)


def _words(cell: Cell | None) -> str:
    return f"{cell.text} {cell.spread}".strip() if cell else MISSING


def _with_best(points: Sequence[Point], costs: Sequence[tuple[float, float]]) -> list[Point]:
    best = frontier(costs)
    return [replace(point, best=index in best) for index, point in enumerate(points)]


def _extent(points: Sequence[Point], lines: Sequence[Line]) -> list[float]:
    return [end for point in points for end in (point.low, point.high)] + [line.y for line in lines]


def _figure(
    name: str, title: str, good: str, group: Group, y: Axis, points: Sequence[Point], lines: Sequence[Line]
) -> Figure:
    measured = any(record.memory for record in group.compressors)
    x = Axis.over(ALLOCATED if measured else BODY_ONLY, [point.x for point in points], preferred=BIT_TICKS)
    best = ", ".join(point.name for point in sorted(points, key=lambda point: point.x) if point.best)
    description = (
        f"Chart: {y.title} against {x.title}, {group.title}; {len(points)} compressors. {good.capitalize()} is better. "
        f"On the Pareto frontier, from few bits to many: {best}. The numbers are in the table."
    )
    return Figure(name, scatter(title, f"{group.title} · {good} is better", x, y, points, lines), description)
