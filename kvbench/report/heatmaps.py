"""Pictures of what a compressed cache still answers: by depth and length of a needle, and by task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from kvbench.measure.paired_scores import UNDECIDABLE
from kvbench.report.drawing import colour, dressed, rows_of, tooltips
from kvbench.report.figure import Figure
from kvbench.report.groups import Group
from kvbench.report.verdicts import judged

CELL_WIDTH, CELL_HEIGHT = 46, 26
"""Pixels."""

LONGEST_NAME = 260
MANY = 4
"""Tasks that the words for a picture count and do not name."""

SIGNS = {"unharmed": "", "harmed": " !", "undecided": " ?", "undecidable": ""}
"""Behind a score; a task that decides nothing is grey."""


def needle_map(group: Group, name: str) -> Figure | None:
    """Score by depth and length, a field for every compressor; None without needles."""
    measured = [(record.trial.compressor, record.needles) for record in group.records if record.needles]
    if not measured:
        return None
    rows = [
        {
            "compressor": compressor,
            "tokens": f"{cell.length:,}",
            "depth": f"{cell.depth:.0%}",
            "score": 100 * cell.score.score,
            "label": f"{100 * cell.score.score:.0f}",
            "uncompressed": 100 * cell.score.baseline,
            "decides": True,
        }
        for compressor, result in measured
        for cell in result.cells
    ]
    cells = measured[0][1].cells
    lengths = [f"{length:,}" for length in sorted({cell.length for cell in cells})]
    depths = [f"{depth:.0%}" for depth in sorted({cell.depth for cell in cells})]
    x = alt.X("tokens:N", title="tokens", sort=lengths, axis=alt.Axis(labelAngle=0))
    field = _field(rows, x, alt.Y("depth:N", title="depth of the needle", sort=depths), ["compressor:N"])
    field = field.properties(width=CELL_WIDTH * len(lengths), height=CELL_HEIGHT * len(depths))
    header = alt.Header(labelColor=colour("ink"), labelLimit=LONGEST_NAME)
    order = [compressor for compressor, _ in measured]
    chart = field.facet(
        facet=alt.Facet("compressor:N", title=None, sort=order, header=header), columns=max(1, 12 // len(lengths))
    )
    said = "; ".join(f"{compressor} {100 * result.retrieved:.0f} %" for compressor, result in measured)
    description = f"Heatmap: needles retrieved by depth and length, {group.title}. Over all: {said}."
    return Figure(name, dressed(chart, "Needles retrieved, %", group.title), description)


def task_map(group: Group, name: str) -> Figure | None:
    """Score by task and compressor; None without tasks."""
    settings = group.records[0].trial.workload.tasks
    measured = [(record.trial.compressor, record.tasks) for record in group.records if record.tasks]
    if not measured or settings is None:
        return None
    rows = [
        {
            "compressor": compressor,
            "task": each.task.task,
            "score": 100 * each.task.score,
            "decides": each.verdict != "undecidable",
            "label": f"{100 * each.task.score:.0f}{SIGNS[each.verdict]}",
            "uncompressed": 100 * each.task.baseline,
            "verdict": each.verdict,
        }
        for compressor, result in measured
        for each in judged(result.tasks, settings.margin).tasks
    ]
    tasks = [task.task for task in measured[0][1].tasks]
    axis = alt.Axis(labelLimit=LONGEST_NAME, labelColor=colour("ink"))
    y = alt.Y("compressor:N", title=None, sort=[compressor for compressor, _ in measured], axis=axis)
    x = alt.X("task:N", title=None, sort=tasks, axis=alt.Axis(labelAngle=-40))
    chart = _field(rows, x, y, ["task:N", "compressor:N", "verdict:N"])
    chart = chart.properties(width=CELL_WIDTH * len(tasks), height=CELL_HEIGHT * len(measured))
    description = f"Heatmap: score by task, {group.title}. Harmed: {_harmed(rows) or 'none'}."
    under = f"{group.title} · ! harmed, ? undecided, grey: below {UNDECIDABLE:.0%} without compression"
    return Figure(name, dressed(chart, "Score by task, %", under), description)


def _harmed(rows: Sequence[dict[str, Any]]) -> str:
    """Compressors with the tasks that they harm, in words."""
    tasks: dict[str, list[str]] = {}
    for row in rows:
        if row["verdict"] == "harmed":
            tasks.setdefault(row["compressor"], []).append(row["task"])
    return "; ".join(f"{name} in {', '.join(t) if len(t) < MANY else f'{len(t)} tasks'}" for name, t in tasks.items())


def _field(rows: Sequence[dict[str, Any]], x: alt.X, y: alt.Y, told: Sequence[str]) -> Any:
    """Squares of ``score`` with their ``label``."""
    scale = alt.Scale(domain=[0, 100], range=["#b3402f", "#e8d27a", "#2f7f5f"])
    base = alt.Chart(rows_of([*rows])).encode(x=x, y=y)
    coloured = {"test": "datum.decides", "field": "score", "type": "quantitative", "scale": scale, "legend": None}
    tooltip = [*tooltips(*told), alt.Tooltip("score:Q", format=".1f"), alt.Tooltip("uncompressed:Q", format=".1f")]
    squares = base.mark_rect(stroke=colour("paper")).encode(
        color=alt.ColorValue("#8a929b", condition=coloured),
        tooltip=tooltip,
    )
    return alt.layer(squares, base.mark_text(color="#111111").encode(text=alt.Text("label:N")))
