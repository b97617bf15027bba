"""What the memory buys: tokens a second of the largest batch in a budget, a bar for every compressor and length.

Workloads that differ in nothing but the prompt's length make one chart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import altair as alt

from kvbench.report.crossover import TONES
from kvbench.report.drawing import WIDTH, colour, dressed, rows_of, tooltips
from kvbench.report.figure import Figure, file_name
from kvbench.report.groups import Group
from kvbench.report.numbers import short
from kvbench.storage.units import bytes_in_words

BAR, GAP = 17, 12
"""Pixels of a bar, and between the bars of two compressors."""

LONGEST_NAME = 230
"""Pixels of a compressor's name, from which on it is cut."""


@dataclass(frozen=True)
class Bar:
    """A compressor at one length: its largest batch in the budget, and what that decodes."""

    name: str
    tokens: int
    batch: int
    tokens_per_s: float
    length: str
    """The prompt's tokens, in words."""
    label: str


def capacities(groups: Sequence[Group]) -> list[Figure]:
    """A chart for every model, setting and budget; names are distinct."""
    alike: dict[tuple[Any, ...], list[Bar]] = {}
    for group in groups:
        trial = group.records[0].trial
        settings = trial.workload.capacity
        if settings is None:
            continue
        same = settings.model_copy(update={"prompt": 1})
        key = (trial.model, group.setting, bytes_in_words(settings.budget), same, trial.weights_sha256)
        alike.setdefault(key, []).extend(_bars(group))
    figures: list[Figure] = []
    for (model, setting, budget, _, _), bars in alike.items():
        if bars:
            name = file_name(f"{model} {budget} capacity", [figure.name for figure in figures])
            figures.append(_figure(name, budget, f"{model} · {setting}", bars))
    return figures


def _bars(group: Group) -> list[Bar]:
    measured = [(record.trial.compressor, record.capacity) for record in group.records if record.capacity]
    return [
        Bar(
            name,
            capacity.prompt,
            capacity.batch,
            capacity.tokens_per_s,
            f"{capacity.prompt:,} tokens",
            f"{short(capacity.tokens_per_s)} · {capacity.batch:,} row{'s' * (capacity.batch != 1)}",
        )
        for name, capacity in measured
        if math.isfinite(capacity.tokens_per_s)
    ]


def _figure(name: str, budget: str, title: str, bars: Sequence[Bar]) -> Figure:
    lengths = [f"{tokens:,} tokens" for tokens in sorted({bar.tokens for bar in bars})]
    names = _sorted_names(bars)
    told = "; ".join(
        f"{length}: " + ", ".join(f"{bar.name} {bar.label}" for bar in _fastest_first(bars) if bar.length == length)
        for length in lengths
    )
    description = (
        f"Chart: tokens a second of the largest batch whose cache takes at most {budget}, and the rows of it, {title}. "
        f"{told}."
    )
    return Figure(name, _chart(budget, title, names, lengths, bars), description)


def _fastest_first(bars: Sequence[Bar]) -> list[Bar]:
    return sorted(bars, key=lambda bar: -bar.tokens_per_s)


def _sorted_names(bars: Sequence[Bar]) -> list[str]:
    """By what is decoded at the longest prompt, the most first; what has none there comes last."""
    return list(dict.fromkeys(bar.name for bar in sorted(bars, key=lambda bar: (-bar.tokens, -bar.tokens_per_s))))


def _chart(
    budget: str, title: str, names: Sequence[str], lengths: Sequence[str], bars: Sequence[Bar]
) -> alt.LayerChart:
    """Horizontal bars, those of a compressor together, a colour for each length; the rows stand at their ends."""
    most = max(bar.tokens_per_s for bar in bars)
    scale = alt.Scale(domain=[0, 1.25 * most], nice=False)  # room for what stands at the longest bar's end
    legend = alt.Legend(title=None, orient="bottom", labelColor=colour("ink"))
    tones = alt.Scale(domain=list(lengths), range=list(TONES[: len(lengths)]))
    axis = alt.Axis(labelLimit=LONGEST_NAME, labelColor=colour("ink"))
    base = alt.Chart(rows_of([asdict(bar) for bar in bars])).encode(
        x=alt.X(
            "tokens_per_s:Q", title="tokens a second, all rows of the batch", scale=scale, axis=alt.Axis(tickCount=7)
        ),
        y=alt.Y("name:N", title=None, sort=list(names), axis=axis),
        yOffset=alt.YOffset("length:N", sort=list(lengths)),
    )
    drawn = base.mark_bar().encode(
        color=alt.Color("length:N", legend=legend, scale=tones),
        tooltip=[*tooltips("name:N", "length:N", "batch:Q"), alt.Tooltip("tokens_per_s:Q", format=".3~r")],
    )
    labels = base.mark_text(align="left", dx=4, color=colour("muted")).encode(text=alt.Text("label:N"))
    chart = alt.layer(drawn, labels)
    height = len(names) * (BAR * len(lengths) + GAP)
    heading = f"Tokens a second within {budget} of cache"
    return dressed(chart, heading, f"{title} · longer is better", width=WIDTH, height=height)
