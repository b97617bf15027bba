"""A chart of projections: tokens a second against the length of the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import altair as alt

from kvbench.projection.project import Projection
from kvbench.projection.step_time import Setting
from kvbench.report.axes import Axis
from kvbench.report.crossover import LENGTHS, SHAPES, TONES, cycled
from kvbench.report.drawing import HEIGHT, WIDTH, axis_of, colour, dressed, rows_of, scale_of, tooltips
from kvbench.report.figure import Figure, file_name
from kvbench.report.pictures import pictures
from kvbench.report.projection import cells, markdown


def write_projection(rows: Sequence[Projection], usable: float, folder: Path) -> list[Path]:
    """``table.md`` and a chart as SVG for every batch; what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "table.md"]
    written[0].write_text(markdown(rows, usable), "utf-8")
    with pictures(figures(rows)) as drawn:
        for name, picture in drawn().items():
            if name.endswith(".svg"):
                written.append(folder / name)
                written[-1].write_bytes(picture)
    return written


@dataclass(frozen=True)
class Stop:
    """A device and compressor at one length."""

    name: str
    tokens: int
    tokens_per_s: float
    rows: int
    bound: str


def figures(rows: Sequence[Projection]) -> list[Figure]:
    """Tokens a second against length, a line for every device and compressor: of the largest batches, or of one batch
    a chart. Lengths at which nothing fits are left out."""
    largest = all(row.batch == row.largest_batch for row in rows)
    drawn: list[Figure] = []
    for batch in [None] if largest else sorted({row.batch for row in rows}):
        stops = [
            Stop(
                f"{row.setting.device.key} · {row.compressor}",
                row.context,
                row.step.tokens_per_s,
                row.batch,
                cells(row)[-1],
            )
            for row in rows
            if row.step is not None and batch in (None, row.batch)
        ]
        if len({stop.tokens for stop in stops}) < 2:
            continue
        of = "largest batch that fits" if batch is None else f"batch {batch}"
        drawn.append(_figure(rows[0].setting, of, stops, [figure.name for figure in drawn]))
    return drawn


def _figure(setting: Setting, of: str, stops: Sequence[Stop], taken: Sequence[str]) -> Figure:
    shape, parallel = setting.shape, setting.parallel
    title = (
        f"{shape.name} · {of} · {parallel.devices} device{'s' * (parallel.devices > 1)}, {setting.precision} weights"
    )
    name = file_name(f"{shape.name} {of} projection", taken)
    told = "; ".join(f"{stop.name} at {stop.tokens:,}: {stop.tokens_per_s:,.0f}, {stop.bound}" for stop in stops)
    return Figure(name, _chart(title, stops), f"Chart: projected tokens a second against context, {title}. {told}.")


def _chart(title: str, stops: Sequence[Stop]) -> alt.LayerChart:
    """Lines with a point for every length, both axes logarithmic where they are long."""
    names = list(dict.fromkeys(stop.name for stop in stops))
    x = Axis.over("tokens of context", [stop.tokens for stop in stops], True, LENGTHS)
    y = Axis.over("projected tokens a second", [stop.tokens_per_s for stop in stops])
    legend = alt.Legend(title=None, orient="bottom", columns=2, labelLimit=WIDTH, labelColor=colour("ink"))
    base = alt.Chart(rows_of([asdict(stop) for stop in stops])).encode(
        x=alt.X("tokens:Q", title=x.title, scale=scale_of(x), axis=axis_of(x)),
        y=alt.Y("tokens_per_s:Q", title=y.title, scale=scale_of(y), axis=axis_of(y)),
        color=alt.Color("name:N", legend=legend, scale=alt.Scale(domain=names, range=cycled(TONES, names))),
    )
    points = base.mark_point(size=56, filled=True, opacity=1).encode(
        shape=alt.Shape("name:N", legend=legend, scale=alt.Scale(domain=names, range=cycled(SHAPES, names))),
        tooltip=[
            *tooltips("name:N", "tokens:Q", "rows:Q"),
            alt.Tooltip("tokens_per_s:Q", format=".3~r"),
            alt.Tooltip("bound:N"),
        ],
    )
    chart = alt.layer(base.mark_line(strokeWidth=1.5, opacity=0.8), points)
    heading = "Projection: what the hardware allows"
    return dressed(chart, heading, f"{title} · higher is better", width=WIDTH, height=HEIGHT)
