"""Calibrated on one text, scored on another: what every method loses, a field for each pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from kvbench.report.drawing import colour, dressed, rows_of, tooltips
from kvbench.report.figure import Figure, file_name
from kvbench.report.groups import Group, is_baseline
from kvbench.report.numbers import short
from kvbench.report.shift import calibrates

CELL_WIDTH, CELL_HEIGHT = 74, 26
"""Pixels."""

LONGEST_NAME = 260


@dataclass(frozen=True)
class Pair:
    """A compressor's KLD on documents of ``scored`` when ``calibration`` was read to fit it."""

    compressor: str
    calibration: str
    scored: str
    kld: float


def domain_maps(groups: Sequence[Group]) -> list[Figure]:
    """A picture for every model and setting in which something was calibrated on several texts; names are distinct."""
    alike: dict[tuple[Any, ...], list[Pair]] = {}
    for group in groups:
        trial = group.records[0].trial
        quality = trial.workload.quality
        if quality is not None:
            same = (trial.model, group.setting, quality.length, quality.prefix, quality.block, trial.weights_sha256)
            alike.setdefault(same, []).extend(_pairs(group))
    figures: list[Figure] = []
    for (model, setting, length, *_), pairs in alike.items():
        homes = {(pair.compressor, pair.scored): pair.kld for pair in pairs if pair.calibration == pair.scored}
        rows = [pair for pair in pairs if homes.get((pair.compressor, pair.scored), 0) > 0]
        if len({pair.calibration for pair in rows}) > 1:
            name = file_name(f"{model} {length} domains", [figure.name for figure in figures])
            figures.append(_figure(name, f"{model} · {length:,} tokens · {setting}", rows, homes))
    return figures


def _pairs(group: Group) -> list[Pair]:
    """Of what calibrates and was measured."""
    pairs = []
    for record in group.records:
        settings = record.trial.workload.quality
        if record.quality and settings and calibrates(record) and not is_baseline(record):
            pair = Pair(record.trial.compressor, settings.calibration_text, settings.text, record.quality.kld_mean)
            pairs.append(pair)
    return pairs


def _figure(name: str, title: str, pairs: Sequence[Pair], homes: dict[tuple[str, str], float]) -> Figure:
    ratios = [pair.kld / homes[pair.compressor, pair.scored] for pair in pairs]
    rows = [
        {
            "compressor": pair.compressor,
            "texts": f"{pair.calibration} → {pair.scored}",
            "kld": pair.kld,
            "ratio": ratio,
            "label": short(pair.kld, 2),
        }
        for pair, ratio in zip(pairs, ratios, strict=True)
    ]
    worst: dict[str, float] = {}
    for pair, ratio in zip(pairs, ratios, strict=True):
        worst[pair.compressor] = max(worst.get(pair.compressor, 0.0), ratio)
    order = sorted(worst, key=lambda compressor: worst[compressor])
    told = "; ".join(f"{compressor} at most {worst[compressor]:.1f} times" for compressor in order)
    description = f"Heatmap: KLD by what was calibrated on and what is scored, {title}. Over its domain's own: {told}."
    return Figure(name, _chart(title, rows, order), description)


def _chart(title: str, rows: list[dict[str, Any]], order: Sequence[str]) -> Any:
    columns = sorted({row["texts"] for row in rows}, key=lambda texts: texts.split(" → ")[::-1])
    axis = alt.Axis(labelLimit=LONGEST_NAME, labelColor=colour("ink"))
    base = alt.Chart(rows_of(rows)).encode(
        x=alt.X("texts:N", title="calibrated on → scored on", sort=columns, axis=alt.Axis(labelAngle=-30)),
        y=alt.Y("compressor:N", title=None, sort=[*order], axis=axis),
    )
    scale = alt.Scale(type="log", domain=[1, 8], range=["#2f7f5f", "#e8d27a", "#b3402f"], clamp=True)
    squares = base.mark_rect(stroke=colour("paper")).encode(
        color=alt.Color("ratio:Q", scale=scale, legend=None),
        tooltip=[
            *tooltips("compressor:N", "texts:N"),
            alt.Tooltip("kld:Q", format=".3~r"),
            alt.Tooltip("ratio:Q", format=".2f"),
        ],
    )
    chart = alt.layer(squares, base.mark_text(color="#111111").encode(text=alt.Text("label:N")))
    under = f"{title} · colour: times the KLD when calibrated on what is scored"
    heading = "KLD on another text than calibrated on"
    size = {"width": CELL_WIDTH * len(columns), "height": CELL_HEIGHT * len(order)}
    return dressed(chart, heading, under, **size)
