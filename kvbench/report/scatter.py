"""One kind of chart: named points with error bars, their Pareto frontier, and horizontal lines to compare with.

Frontier points are filled and joined, dominated ones hollow and grey, so colour never speaks alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import altair as alt

from kvbench.report.axes import Axis
from kvbench.report.drawing import HEIGHT, WIDTH, axis_of, colour, dressed, rows_of, scale_of
from kvbench.report.labels import Box, Place, place_labels, text_box


@dataclass(frozen=True)
class Point:
    """A compressor at ``x``, ``y`` with the ends of its error bar and, for the tooltip, ``numbers`` by name."""

    name: str
    x: float
    y: float
    low: float
    high: float
    best: bool
    numbers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A baseline's value of y, across the whole chart."""

    name: str
    y: float


def scatter(
    title: str, subtitle: str, x: Axis, y: Axis, points: Sequence[Point], lines: Sequence[Line] = ()
) -> alt.LayerChart:
    """The chart. All points and lines must lie within the axes."""
    drawing = _Drawing(x, y, tuple(points), tuple(lines))
    layers = [*drawing.baselines(), *drawing.frontier(), drawing.bars(), drawing.marks(), drawing.names()]
    chart = alt.layer(*layers, data=rows_of(drawing.rows()))
    return dressed(chart, title, subtitle, width=WIDTH, height=HEIGHT)


@dataclass(frozen=True)
class _Drawing:
    """The chart's layers."""

    x: Axis
    y: Axis
    points: tuple[Point, ...]
    lines: tuple[Line, ...]

    def baselines(self) -> list[alt.Chart]:
        """Dashed lines with their names at the right end."""
        if not self.lines:
            return []
        base = alt.Chart(rows_of([{"y": line.y, "name": line.name} for line in self.lines])).encode(y=self._y())
        rules = base.mark_rule(color=colour("muted"), strokeDash=[4, 4])
        names = base.mark_text(
            align="right", baseline="bottom", dx=-3, dy=-3, color=colour("muted"), fontStyle="italic"
        )
        return [rules, names.encode(x=alt.XValue(WIDTH), text=alt.Text("name:N"))]

    def frontier(self) -> list[alt.Chart]:
        """A staircase: between two points only the poorer of them is known to be possible."""
        best = self._best()
        data = rows_of([{"x": x, "y": y} for x, y in best])
        line = alt.Chart(data).mark_line(
            interpolate="step-after", color=colour("accent"), opacity=0.45, strokeWidth=1.5
        )
        return [line.encode(x=self._x(), y=self._y(), order=alt.Order("x:Q"))] if len(best) > 1 else []

    def bars(self) -> alt.Chart:
        """Error bars."""
        return (
            self._over_points()
            .mark_rule(strokeWidth=1.25, color=self._tone())
            .encode(y=self._y("low"), y2=alt.Y2("high:Q"))
        )

    def marks(self) -> alt.Chart:
        """Filled where best, else hollow; both opaque, so that lines end at them."""
        fill = alt.expr("datum.best ? accent : paper")
        marks = self._over_points().mark_point(
            shape="circle", size=58, opacity=1, strokeWidth=1.5, fill=fill, stroke=self._tone()
        )
        numbers = [alt.Tooltip(f"{name}:N") for name in self.points[0].numbers]
        return marks.encode(y=self._y(), tooltip=[alt.Tooltip("name:N", title="compressor"), *numbers])

    def names(self) -> alt.Chart:
        """Names where there is room for them."""
        names = (
            self._over_points()
            .transform_filter("isValid(datum.label)")
            .mark_text(
                baseline="middle",
                align=alt.expr("datum.align"),
                dx=alt.expr("datum.dx"),
                dy=alt.expr("datum.dy"),
                color=alt.expr("datum.best ? ink : muted"),
            )
        )
        return names.encode(y=self._y(), text=alt.Text("label:N"))

    def rows(self) -> list[dict[str, Any]]:
        """What all layers read that bring no data of their own."""
        return [
            {"name": point.name, "x": point.x, "y": point.y, "low": point.low, "high": point.high, "best": point.best}
            | (asdict(place) | {"label": point.name} if place else {})
            | point.numbers
            for point, place in zip(self.points, self._places(), strict=True)
        ]

    def _over_points(self) -> alt.Chart:
        return alt.Chart().encode(x=self._x())

    def _places(self) -> list[Place | None]:
        """Where the names go: off points, bars, baselines and the staircase."""
        points = [(self._left(point.x), self._top(point.y)) for point in self.points]
        bars = [
            Box(left - 2, self._top(point.high), left + 2, self._top(point.low))
            for point, (left, _) in zip(self.points, points, strict=True)
        ]
        lines = [Box(0, self._top(line.y) - 1, WIDTH, self._top(line.y) + 1) for line in self.lines]
        names = [text_box(WIDTH - 3, self._top(line.y) - 9, line.name, "right") for line in self.lines]
        obstacles = [*bars, *lines, *names, *self._stairs()]
        texts, best = [point.name for point in self.points], [point.best for point in self.points]
        return place_labels(points, texts, best, WIDTH, HEIGHT, obstacles)

    def _stairs(self) -> list[Box]:
        """The frontier's line as thin boxes, one per flight."""
        corners = [(self._left(x), self._top(y)) for x, y in self._best()]
        flights = [
            (Box(x, y - 1, next_x, y + 1), Box(next_x - 1, min(y, next_y), next_x + 1, max(y, next_y)))
            for (x, y), (next_x, next_y) in pairwise(corners)
        ]
        return [box for flight in flights for box in flight]

    def _best(self) -> list[tuple[float, float]]:
        return sorted((point.x, point.y) for point in self.points if point.best)

    def _left(self, value: float) -> float:
        return WIDTH * self.x.place(value)

    def _top(self, value: float) -> float:
        return HEIGHT * (1 - self.y.place(value))

    def _x(self) -> alt.X:
        return alt.X("x:Q", title=self.x.title, scale=scale_of(self.x), axis=axis_of(self.x))

    def _y(self, name: str = "y") -> alt.Y:
        return alt.Y(f"{name}:Q", title=self.y.title, scale=scale_of(self.y), axis=axis_of(self.y))

    @staticmethod
    def _tone() -> Any:
        return alt.expr("datum.best ? accent : muted")
