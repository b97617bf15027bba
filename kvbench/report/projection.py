"""Projections as text, for the terminal and as Markdown. That they are projections stands in every title."""

from __future__ import annotations

from collections.abc import Sequence

from kvbench.projection.absorption import Absorption, absorption
from kvbench.projection.project import Projection
from kvbench.projection.step_time import Setting

COLUMNS = ("compressor", "context", "rows", "B/token", "most rows", "longest", "step ms", "tokens/s", "bound by")
"""``most rows`` fit at that context; ``longest`` context of that many rows fits (of one, where rows are the most)."""


def cells(row: Projection) -> tuple[str, ...]:
    """One line of the table, in the order of :data:`COLUMNS`."""
    sizes = (
        row.compressor,
        f"{row.context:,}",
        f"{row.batch:,}",
        f"{row.bytes_per_token:,.0f}",
        f"{row.largest_batch:,}",
        f"{row.longest_context:,}",
    )
    if row.step is None:
        return (*sizes, "–", "–", "does not fit")
    limit, of, part = row.step.binds
    return (*sizes, _rounded(1e3 * row.step.seconds), _rounded(row.step.tokens_per_s), f"{limit}: {of}, {part:.0%}")


def _rounded(value: float) -> str:
    """With three significant digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def heading(setting: Setting) -> str:
    """What a table is about."""
    parallel, device = setting.parallel, setting.device
    spread = [f"tp {parallel.tensor}"] if parallel.tensor > 1 else []
    spread += [f"ep {parallel.expert}"] if parallel.expert > 1 else []
    count = f"{parallel.devices} × " if parallel.devices > 1 else ""
    return " · ".join(
        [f"projection: {setting.shape.name} on {count}{device.key}", *spread, f"{setting.precision} weights"]
    )


def notes(setting: Setting, usable: float) -> list[str]:
    """What the numbers of a table assume, and what absorbed attention costs."""
    device, limits, activations = setting.device, setting.limits, setting.activations
    told = [
        f"{device.name}: {device.bandwidth / 1e9:,.4g} GB/s, {device.peak(activations) / 1e12:,.4g} TFLOP/s in "
        f"{activations}; weights take {setting.weight_bytes / 1e9:,.3g} of {usable * device.memory / 1e9:,.3g} GB."
    ]
    two = absorption(setting)
    if two is not None:
        told.append(_ways(two))
    told.append(
        f"Efficiency: {limits.compute:g} of peak arithmetic, {limits.memory:g} of memory bandwidth, {limits.link:g} of "
        "links. Phases follow one another, messages are not hidden, latency is left out; nothing was run."
    )
    if setting.parallel.devices > 1:
        told.append("Bytes are those of one device; rows and tokens a second those of all devices together.")
    return told


def _ways(two: Absorption) -> str:
    """Absorbed or rebuilt: which is cheaper, and what bounds decoding."""
    bound = "reading the latent" if two.memory_bound >= 1 else "arithmetic"
    pays = "never pays" if two.break_even is None else f"pays from {two.break_even:,} new tokens at once on"
    return (
        f"mla is absorbed: {two.absorbed:,} operations a cached token and layer. Rebuilding keys and values takes "
        f"{two.rebuilding:,} and then {two.rebuilt:,} for each new token: it {pays}. One new token is bound by {bound}."
    )


def markdown(rows: Sequence[Projection], usable: float) -> str:
    """A table for every device, with what it assumes below."""
    parts = []
    for setting, its_rows in by_setting(rows):
        lines = ["| " + " | ".join(COLUMNS) + " |", "| --- |" + " ---: |" * (len(COLUMNS) - 2) + " --- |"]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in its_rows]
        below = [f"- {note}" for note in notes(setting, usable)]
        parts.append("\n".join([f"## {heading(setting)}", "", *lines, "", *below]))
    return "\n\n".join(parts) + "\n"


def by_setting(rows: Sequence[Projection]) -> list[tuple[Setting, list[Projection]]]:
    """Rows of one device together."""
    keys = dict.fromkeys(row.setting.device.key for row in rows)
    grouped = [[row for row in rows if row.setting.device.key == key] for key in keys]
    return [(group[0].setting, group) for group in grouped]
