"""Memory over time: what the caches of one long text take while it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import altair as alt

from kvbench.report.crossover import TONES, cycled
from kvbench.report.drawing import HEIGHT, WIDTH, colour, dressed, rows_of, tooltips
from kvbench.report.figure import Figure
from kvbench.report.groups import Group
from kvbench.report.numbers import MIB, mebibytes


@dataclass(frozen=True)
class CacheSize:
    """What the caches of one text take when they hold so many tokens."""

    name: str
    tokens: int
    mebibytes: float


def growth(group: Group, name: str) -> Figure | None:
    """A line for each compressor, ``none`` among them."""
    sizes: list[CacheSize] = []
    for record in group.records:
        memory = record.generation.memory if record.generation else ()
        sizes.extend(CacheSize(record.trial.compressor, each.tokens, each.bytes / MIB) for each in memory)
    if not sizes:
        return None
    last = {each.name: each for each in sizes}
    names = sorted(last, key=lambda each: -last[each].mebibytes)
    told = "; ".join(
        f"{each} {mebibytes(round(last[each].mebibytes * MIB))} MiB at {last[each].tokens:,}" for each in names
    )
    description = f"Chart: MiB that the caches of one text take against the tokens in them, {group.title}. {told}."
    return Figure(name, _chart(group.title, names, sizes), description)


def _chart(title: str, names: Sequence[str], sizes: Sequence[CacheSize]) -> alt.LayerChart:
    legend = alt.Legend(title=None, orient="bottom", columns=2, labelLimit=WIDTH, labelColor=colour("ink"))
    base = alt.Chart(rows_of([asdict(each) for each in sizes])).encode(
        x=alt.X("tokens:Q", title="tokens held, prompt and text"),
        y=alt.Y("mebibytes:Q", title="MiB allocated"),
        color=alt.Color("name:N", legend=legend, scale=alt.Scale(domain=list(names), range=cycled(TONES, names))),
        tooltip=[*tooltips("name:N", "tokens:Q"), alt.Tooltip("mebibytes:Q", format=".3~r")],
    )
    chart = alt.layer(base.mark_line(strokeWidth=1.5), base.mark_point(size=16, filled=True))
    heading = "Memory while a text is written"
    return dressed(chart, heading, f"{title} · lower is better", width=WIDTH, height=HEIGHT)
