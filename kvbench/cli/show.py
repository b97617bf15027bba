"""``kvbench show``: a compressor explained, or one trial's record."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvbench.cache.reads import STOCK, explained
from kvbench.cli.console import err, out
from kvbench.cli.early import refuse_slips
from kvbench.cli.options import Dtype
from kvbench.compressors.catalogue import catalogue, sketch
from kvbench.errors import EXIT_OK, unknown

if TYPE_CHECKING:
    from kvbench.compressors.outline import Outline
    from kvbench.measure.sizes import Sizes

SPANS = (
    "Every spec also takes sinks=4, recent=64 and block=32 (tokens): the exact spans around the body; and "
    "exact=model, float16 or bfloat16: the dtype that they are stored in."
)


def show(
    item: Annotated[str, Parameter(help="A compressor spec, or a trial id with --results.")],
    /,
    *,
    model: Annotated[str | None, Parameter(help="Model to fit the spec to; adds what it takes there.")] = None,
    dtype: Dtype = "float32",
    results: Annotated[Path | None, Parameter(help="Results folder to look the trial up in.")] = None,
) -> int:
    """Explain a compressor (paper, what is stored, every setting), or print one trial's record.

    With --model also what it is there: bases, bits with and without them, the tokens from which it pays, and what
    attends to its cache.
    """
    if results is None:
        refuse_slips(model=model, dtype=dtype)
        told = describe(item, fitted=model is not None)
        sizes = None if model is None else _sizes(item, model, dtype)
        out.print(told)
        if sizes is not None:
            out.print(sizes_view(sizes))
        return EXIT_OK
    from kvbench.runs.store import read_records

    records = {record.id: record for record in read_records(results)}
    if item not in records:
        raise unknown("trial", item, records)
    out.print_json(records[item].to_json())
    return EXIT_OK


def _sizes(spec: str, model: str, dtype: str) -> Sizes:
    from kvbench.compressors.compressor import parse
    from kvbench.measure.bench import CalibrationSource, ModelBench
    from kvbench.measure.sizes import predicted_sizes
    from kvbench.runs.progress import counted

    compressor = parse(spec)
    with counted(err, "fitting") as report:
        bench = ModelBench(model, dtype, "cpu", report)
        return predicted_sizes(bench, compressor, CalibrationSource("essays", 8, 1024))


def describe(spec: str, fitted: bool = False) -> RenderableType:
    """A compressor spec (or a bare name) in words: every part's docstring and settings, and what attends.

    Of kvbench's own compressors this is written down (:mod:`kvbench.compressors.catalogue`); what attends is there for
    one spec of each. ``fitted``: it is about to be told for a model.

    Raises:
        KvbenchError: the spec does not parse.
    """
    bare = ":" not in spec and "+" not in spec
    title, outlines = ("", _outlines_of_name(spec)) if bare else _outlines_of_spec(spec)
    shown: list[RenderableType] = [Text(f"{title}\n", style="bold")] if title else []
    for outline in outlines:
        shown += [
            Text(f"{outline.name} · {outline.family}", style="bold"),
            Text(flowing(outline.about)),
            _settings(outline),
        ]
    if not fitted:
        shown += _reading(spec if bare else title, [outline.name for outline in outlines])
    shown.append(Text(SPANS))
    if not fitted:
        shown.append(
            Text("With --model: the bytes of its bases there, bits by length, and from how many tokens it pays.")
        )
    return Group(*shown)


def flowing(text: str) -> str:
    """A docstring whose paragraphs and list entries are one line each, for a terminal to break."""
    joined = re.sub(r"(?<=\S)\n *(?=[^\s\d*-])", " ", text)
    return re.sub(r":\w+:`([^`]+)`", r"\1", joined)


def _outlines_of_name(name: str) -> list[Outline]:
    """The part called ``name``; code is imported for what is not in the catalogue."""
    if name in catalogue():
        return [catalogue()[name].outline]
    from kvbench.compressors import registry

    return [registry.find(name).outline()]


def _outlines_of_spec(spec: str) -> tuple[str, list[Outline]]:
    """The canonical spec, and its parts in order."""
    drawn = sketch(spec)
    if drawn is not None:
        return str(drawn), [outline for outline, _ in drawn.parts]
    from kvbench.compressors.compressor import parse

    compressor = parse(spec)
    return str(compressor), [part.outline() for part in compressor.parts]


def _settings(outline: Outline) -> RenderableType:
    if not outline.settings:
        return Text("no settings\n")
    table = Table("key", "kind", "default", box=None, header_style="bold")
    for setting in outline.settings:
        table.add_row(*setting.in_words)
    return table


def _reading(spec: str, names: list[str]) -> list[RenderableType]:
    """What attends to the cache of ``spec``, or of the example of its only part, with the meaning of the words."""
    entry = catalogue().get(names[0]) if len(names) == 1 else None
    if entry is not None and spec in (names[0], entry.example, str(sketch(entry.example))):
        return [attends_view(entry.example, entry.attends)]
    if entry is not None and entry.attends == STOCK:
        return [attends_view(spec, STOCK)]
    return [Text("What attends to its cache depends on the settings and the model: --model tells.\n")]


def attends_view(spec: str, attends: str) -> Text:
    """What attends to the cache of ``spec`` while decoding, a line for each way."""
    told = Text(f"decode of {spec}: {attends}\n", style="bold")
    for words in explained(attends):
        told.append(f"  {words}\n", style="not bold")
    return told


def sizes_view(sizes: Sizes) -> RenderableType:
    """Bases, bits by length, the tokens from which they pay, and what attends."""
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
    return Group(title, told, Text(), bits, Text(), attends_view(sizes.spec, sizes.attends))
