"""How all charts look: size, colours, fonts, axes.

Colours are looked up by name when a chart is drawn: its :class:`~kvbench.report.figure.Figure` brings those of light
paper as parameters, so that a page can turn them dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from kvbench.report.axes import Axis

WIDTH, HEIGHT = 500, 320
"""Pixels of the plotting area."""

LIGHT = {"ink": "#1c2128", "muted": "#68717b", "faint": "#e6e9ed", "accent": "#0b5cad", "paper": "#ffffff"}
DARK = {"ink": "#e6edf3", "muted": "#98a2ad", "faint": "#2a313a", "accent": "#6cb0ff", "paper": "#161b22"}
FONT = "Arial, 'Liberation Sans', Helvetica, sans-serif"
"""Of one width everywhere, so that names fit where they were placed."""

FONT_SIZE = 11


def rows_of(rows: Sequence[dict[str, Any]]) -> alt.Data:
    """Data that travels with the chart; as a tuple, which charts share where they would copy lists row by row."""
    return alt.Data(values=tuple(rows))


def scale_of(axis: Axis) -> alt.Scale:
    """Exactly the axis, without rounding to nice ends."""
    return alt.Scale(type="log" if axis.logarithmic else "linear", domain=[axis.low, axis.high], nice=False, zero=False)


def axis_of(axis: Axis) -> alt.Axis:
    """Its ticks."""
    return alt.Axis(values=list(axis.ticks), format="~g") if axis.logarithmic else alt.Axis(tickCount=7)


def tooltips(*columns: str) -> list[alt.Tooltip]:
    """Columns of the data, shown beside the pointer.

    All charts give Altair its classes: what it makes of a mere text takes milliseconds, for every text anew.
    """
    return [alt.Tooltip(column) for column in columns]


def colour(name: str) -> Any:
    """A colour that is looked up when the chart is drawn."""
    return alt.expr(name)


def dressed(chart: Any, title: str, subtitle: str, **size: int) -> Any:
    """``chart`` with a heading, quiet axes, titles flush left, and a ``width`` and ``height`` where they are given.

    It is changed itself: every copy of a chart takes its time. ``size`` is in pixels of the plotting area.
    """
    chart.title = alt.TitleParams(text=title, subtitle=subtitle)
    chart.background = colour("paper")
    for name, pixels in size.items():
        setattr(chart, name, pixels)
    chart.config = {
        "font": FONT,
        "view": {"stroke": None},
        "text": {"fontSize": FONT_SIZE},
        "title": {
            "anchor": "start",
            "frame": "group",
            "offset": 14,
            "color": {"expr": "ink"},
            "fontSize": 15,
            "fontWeight": 600,
            "subtitleColor": {"expr": "muted"},
            "subtitleFontSize": 12,
            "subtitlePadding": 5,
        },
        "axisLeft": {"minExtent": 44},  # charts side by side keep one scale
        "axis": {
            "gridColor": {"expr": "faint"},
            "domain": False,
            "tickColor": {"expr": "faint"},
            "labelColor": {"expr": "muted"},
            "labelFontSize": FONT_SIZE,
            "titleColor": {"expr": "ink"},
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 8,
        },
    }
    return chart
