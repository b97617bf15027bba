"""Lists and explanations for the terminal: what exists, what a compressor is, how two completions differ.

What needs torch is imported where it is used: a list of suites should not wait for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kvbench.errors import PluginError
from kvbench.models import registry as models
from kvbench.runs.suites import load_suite, suite_names
from kvbench.texts import registry as texts

if TYPE_CHECKING:
    from kvbench.compressors.part import Part
    from kvbench.conformance.kit import Check
    from kvbench.measure.generation import Completion, SideBySide
    from kvbench.measure.sizes import Sizes
    from kvbench.runs.fit import Fit

Rows = list[dict[str, str]]


def _compressors() -> Rows:
    from kvbench.compressors import registry as compressors

    return [_compressor(name) for name in compressors.names()]


def _compressor(name: str) -> dict[str, str]:
    from kvbench.compressors import registry as compressors

    try:
        cls = compressors.find(name)
    except PluginError as error:  # a broken package must not hide the others
        return {"name": name, "family": "broken", "brings": str(error), "needs": "", "attends": "", "paper": ""}
    return {
        "name": name,
        "family": cls.family,
        "brings": ", ".join(cls.roles),
        "needs": "calibration" if cls.needs_calibration else "",
        "attends": _attends(cls),
        "paper": cls.paper,
    }


def _attends(cls: type[Part]) -> str:
    """What attends with default settings, derived from the codec that they are fitted to."""
    from kvbench.measure.small import attends_on_small, example

    spec = example(cls)
    return "" if spec is None else attends_on_small(spec) or ""


def _models() -> Rows:
    entries = [models.find(name) for name in models.names()]
    rows = [
        {"name": entry.name, "source": entry.source, "family": entry.family, "licence": entry.licence}
        for entry in entries
    ]
    return [*rows, {"name": "random:<family>", "source": "random", "family": "any supported", "licence": ""}]


def _texts() -> Rows:
    entries = [texts.find(name) for name in texts.names()]
    return [{"name": entry.name, "source": entry.source, "what": entry.description} for entry in entries]


def _suites() -> Rows:
    suites = [load_suite(name) for name in suite_names()]
    return [
        {"name": suite.name, "models": ", ".join(suite.models), "compressors": ", ".join(suite.compressors)}
        for suite in suites
    ]


LISTS: dict[str, Callable[[], Rows]] = {
    "compressors": _compressors,
    "models": _models,
    "texts": _texts,
    "suites": _suites,
}


def list_table(rows: Rows) -> Table:
    """One column per key."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0]:
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for row in rows:
        table.add_row(*row.values())
    return table


def describe(spec: str) -> RenderableType:
    """A compressor spec (or a bare name) in words: every part's docstring and settings.

    Raises:
        KvbenchError: the spec does not parse.
    """
    from kvbench.compressors import registry as compressors
    from kvbench.compressors.compressor import parse
    from kvbench.measure.small import example

    classes = (
        [compressors.find(spec)] if ":" not in spec and "+" not in spec else [type(part) for part in parse(spec).parts]
    )
    shown: list[RenderableType] = []
    if ":" in spec or "+" in spec:
        shown.append(Text(f"{parse(spec)}\n", style="bold"))
    for cls in classes:
        shown += [
            Text(f"{cls.name} · {cls.family}", style="bold"),
            Text(inspect.cleandoc(cls.__doc__ or "")),
            _settings(cls),
        ]
    shown += _reading(spec if ":" in spec or "+" in spec else example(classes[0]))
    shown.append(
        Text(
            "Every spec also takes sinks=4, recent=64 and block=32 (tokens): the exact spans around the body; and "
            "exact=model, float16 or bfloat16: the dtype that they are stored in."
        )
    )
    shown.append(Text("With --model: the bytes of its bases there, bits by length, and from how many tokens it pays."))
    return Group(*shown)


def _reading(spec: str | None) -> list[RenderableType]:
    """What attends to the cache of ``spec`` while decoding, with the meaning of the words; nothing if it depends."""
    from kvbench.cache.way import READS, STOCK
    from kvbench.measure.small import attends_on_small

    by = None if spec is None else attends_on_small(spec)
    if by is None:
        return []
    told = Text(f"decode of {spec}: {by}\n", style="bold")
    for way in by.split(" | "):
        told.append(
            "  transformers' own attention\n" if way == STOCK else f"  {READS[way.split()[1]]}\n", style="not bold"
        )
    return [told]


def sizes_view(sizes: Sizes) -> RenderableType:
    """Bases, bits by length, and the tokens from which they pay."""
    pays = sizes.break_even_tokens
    told = Table.grid(padding=(0, 2))
    told.add_row("bases", f"{sizes.model_level_bytes / 2**20:.2f} MiB, held once for all caches")
    told.add_row(
        "pays from",
        "no length on: it never takes fewer bytes than 16-bit keys and values"
        if pays is None
        else f"{pays:,} tokens of one sequence on, bases included, against 16-bit keys and values",
    )
    bits = Table("tokens", box=None, pad_edge=False, header_style="bold")
    for column in ("bits", "bits with bases"):
        bits.add_column(column, justify="right")
    for tokens, alone in sizes.bits.items():
        bits.add_row(f"{tokens:,}", f"{alone:.2f}", f"{sizes.bits_with_bases[tokens]:.2f}")
    title = Text(f"\none sequence on {sizes.model}, {sizes.dtype}, by arithmetic\n", style="bold")
    return Group(title, told, Text(), bits)


def completion_view(result: SideBySide, spec: str) -> RenderableType:
    """Both completions side by side, where they part, and the bytes of each cache."""
    from kvbench.compressors.compressor import parse

    at = result.diverges_at
    verdict = "the same tokens" if at is None else f"they part at token {at + 1}"
    ratio = result.uncompressed.cache_bytes / max(1, result.compressed.cache_bytes)
    lines = [f"prompt {result.prompt_tokens} tokens · {verdict} · cache of none ÷ cache of {spec} = {ratio:.2f}"]
    if result.compressed.body_tokens == 0 and parse(spec).baseline is None:
        lines.append(
            "nothing was compressed: all tokens still fit the exact spans; lower them with recent=0,block=8 or "
            "write a longer prompt"
        )
    panels = Table.grid(expand=True)
    for _ in range(2):
        panels.add_column(ratio=1)
    panels.add_row(_panel("none", result.uncompressed), _panel(spec, result.compressed))
    return Group(panels, *(Text(line) for line in lines))


def checks_table(spec: str, checks: list[Check]) -> Table:
    """The verdicts of the conformance kit on one compressor."""
    table = Table(title=spec, title_justify="left", box=None, pad_edge=False, show_header=False)
    for check in checks:
        mark = "[green]✓[/green]" if check.passed else "[bold red]✗ FAILED[/bold red]"
        table.add_row(mark, check.name, Text(check.detail))
    return table


def fit_view(fit: Fit) -> RenderableType:
    """What ``kvbench fit`` found, and what every layer got."""
    asked = fit.request
    told = Table.grid(padding=(0, 2))
    told.add_row("spec", Text(fit.spec, style="bold"))
    told.add_row("bits per element", f"{fit.measured_bits:.3f} measured, {fit.predicted_bits:.3f} predicted")
    told.add_row("bytes", f"{fit.measured_bytes:,} measured, {fit.predicted_bytes:,} predicted")
    if fit.kld is not None:
        told.add_row("KLD", f"{fit.kld:.4g} measured on {asked.documents} × {asked.tokens} tokens of {asked.text}")
        tried = ", ".join(f"{probe.kld:.2g} ({probe.spec})" for probe in fit.probes)
        told.add_row("settings tried", Text(tried))
    title = Text(f"{asked.method} for {asked.target} at {asked.tokens} tokens on {asked.model}\n", style="bold")
    return Group(title, told, Text(), _allocation(fit))


def _allocation(fit: Fit) -> Table:
    """A row per layer: bits per element and rank of each side."""
    names = list(dict.fromkeys(side.side for side in fit.allocation))
    table = Table("layer", box=None, pad_edge=False, header_style="bold")
    for name in names:
        for column in (f"{name}: bits", "rank"):
            table.add_column(column, justify="right")
    rows: dict[int, dict[str, tuple[str, str]]] = {}
    for side in fit.allocation:
        groups = f"{side.groups} × " if side.groups > 1 else ""
        rows.setdefault(side.layer, {})[side.side] = (f"{side.bits:.2f}", f"{groups}{side.rank}")
    for layer, sides in rows.items():
        table.add_row(str(layer), *(text for name in names for text in sides.get(name, ("", ""))))
    return table


def _panel(title: str, completion: Completion) -> Panel:
    footer = f"{completion.cache_bytes / 2**20:.2f} MiB, {completion.body_tokens} tokens compressed"
    return Panel(Text(completion.text), title=title, subtitle=footer)


def _settings(cls: type[Part]) -> RenderableType:
    rows = cls.settings()
    if not rows:
        return Text("no settings\n")
    table = Table("key", "kind", "default", box=None, header_style="bold")
    for row in rows:
        table.add_row(*row)
    return table
