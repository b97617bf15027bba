"""Where compression starts to pay: decoding speed-up over ``none`` against the length of the context.

Workloads that differ in nothing but the prompt's length make one chart; a compressor is a line through them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import altair as alt

from kvbench.report.axes import Axis
from kvbench.report.drawing import HEIGHT, WIDTH, axis_of, colour, dressed, rows_of, scale_of, tooltips
from kvbench.report.figure import Figure, file_name
from kvbench.report.groups import Group

LENGTHS = tuple(float(2**power) for power in range(6, 21))
TONES = ("#3f7fc4", "#d9772b", "#3d9b63", "#c2506b", "#8a6bc2", "#8c7a55", "#c65fae", "#7d8893", "#a3982f", "#35a0b5")
"""Legible on white and on black."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
"""As many as no multiple of the tones, so that no two of many lines look the same."""


@dataclass(frozen=True)
class Stop:
    """A compressor at one length: its speed-up over ``none`` and the ends of its interval."""

    name: str
    tokens: int
    ratio: float
    low: float
    high: float


def crossovers(groups: Sequence[Group]) -> list[Figure]:
    """A chart for every model and setting that was timed at several lengths; names are distinct."""
    alike: dict[tuple[Any, ...], list[Stop]] = {}
    for group in groups:
        if group.records[0].trial.workload.speed is not None:
            alike.setdefault(_setting(group), []).extend(_stops(group))
    figures: list[Figure] = []
    for (model, setting, batch, _), stops in alike.items():
        if len({stop.tokens for stop in stops}) < 2:
            continue
        name = file_name(f"{model} batch {batch} crossover", [figure.name for figure in figures])
        figures.append(_figure(name, f"{model} · batch {batch} · {setting}", stops))
    return figures


def _setting(group: Group) -> tuple[Any, ...]:
    """All that must be equal within a chart."""
    trial, speed = group.records[0].trial, group.records[0].trial.workload.speed
    return trial.model, group.setting, None if speed is None else speed.batch, trial.weights_sha256


def _stops(group: Group) -> list[Stop]:
    """What was timed, ``none`` itself aside."""
    stops = []
    for record in group.records:
        speed = record.speed
        ratio = None if speed is None else speed.ratio_to_none
        if speed is None or ratio is None or not math.isfinite(ratio) or ratio <= 0:
            continue
        if record.trial.compressor == "none":
            continue
        interval = speed.ratio_to_none_interval
        low, high = (interval.low, interval.high) if interval and interval.low > 0 else (ratio, ratio)
        stops.append(Stop(record.trial.compressor, speed.prompt, ratio, min(low, ratio), max(high, ratio)))
    return stops


def _figure(name: str, title: str, stops: Sequence[Stop]) -> Figure:
    last = {stop.name: stop.ratio for stop in sorted(stops, key=lambda stop: stop.tokens)}
    names = sorted(last, key=lambda name: -last[name])
    told = "; ".join(f"{name} {_pays([stop for stop in stops if stop.name == name])}" for name in names)
    description = (
        f"Chart: decoding speed-up over none against the prompt's length in tokens, {title}. "
        f"Above 1 is faster than none: {told}."
    )
    return Figure(name, _chart(title, names, stops), description)


def _pays(stops: Sequence[Stop]) -> str:
    """From which length on a compressor is faster at all greater ones, by its whole interval."""
    longest_slow = max((stop.tokens for stop in stops if stop.low <= 1), default=0)
    faster = [stop.tokens for stop in stops if stop.tokens > longest_slow]
    return f"from {min(faster):,} on" if faster else "at no length"


def _chart(title: str, names: Sequence[str], stops: Sequence[Stop]) -> alt.LayerChart:
    """Lines with a point for every length and error bars; the legend is sorted as the lines end."""
    x = Axis.over("tokens in the prompt", [stop.tokens for stop in stops], True, LENGTHS)
    y = Axis.over("decoding speed-up over none", [1.0, *(end for stop in stops for end in (stop.low, stop.high))], True)
    legend = alt.Legend(title=None, orient="bottom", columns=2, labelLimit=WIDTH, labelColor=colour("ink"))
    tone = alt.Color("name:N", legend=legend, scale=alt.Scale(domain=list(names), range=cycled(TONES, names)))
    shape = alt.Shape("name:N", legend=legend, scale=alt.Scale(domain=list(names), range=cycled(SHAPES, names)))
    base = alt.Chart(rows_of([asdict(stop) for stop in stops])).encode(
        x=alt.X("tokens:Q", title=x.title, scale=scale_of(x), axis=axis_of(x)), color=tone
    )

    def up(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title=y.title, scale=scale_of(y), axis=axis_of(y))

    one = alt.Chart(rows_of([{"ratio": 1.0}])).mark_rule(color=colour("muted"), strokeDash=[4, 4]).encode(y=up("ratio"))
    lines = base.mark_line(strokeWidth=1.5, opacity=0.8).encode(y=up("ratio"))
    bars = base.mark_rule(strokeWidth=1.25).encode(y=up("low"), y2=alt.Y2("high:Q"))
    points = base.mark_point(size=56, filled=True, opacity=1).encode(
        y=up("ratio"), shape=shape, tooltip=[*tooltips("name:N", "tokens:Q"), alt.Tooltip("ratio:Q", format=".3~r")]
    )
    chart = alt.layer(one, lines, bars, points)
    heading = "Decoding speed against length"
    return dressed(chart, heading, f"{title} · higher is better", width=WIDTH, height=HEIGHT)


def cycled(values: Sequence[str], names: Sequence[str]) -> list[str]:
    """One of ``values`` for each of ``names``, from the start again where they run out."""
    return [values[index % len(values)] for index in range(len(names))]
