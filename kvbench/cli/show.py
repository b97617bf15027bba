"""``kvbench show``: a compressor explained, or one trial's record."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvbench.cli.console import err, out
from kvbench.cli.options import Dtype
from kvbench.compressors.names import refuse_unknown_names
from kvbench.errors import EXIT_OK, unknown

if TYPE_CHECKING:
    from kvbench.compressors.part import Part
    from kvbench.measure.sizes import Sizes


def show(
    item: Annotated[str, Parameter(help="A compressor spec, or a trial id with --results.")],
    /,
    *,
    model: Annotated[str | None, Parameter(help="Model to fit the spec to; adds what it takes there.")] = None,
    dtype: Dtype = "float32",
    results: Annotated[Path | None, Parameter(help="Results folder to look the trial up in.")] = None,
) -> int:
    """Explain a compressor (paper, what is stored, every setting), or print one trial's record.

    With --model also its bytes there: bases, bits with and without them, and the tokens from which it pays.
    """
    if results is None:
        refuse_unknown_names(item)
        sizes = None if model is None else _sizes(item, model, dtype)
        out.print(describe(item))
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


def _settings(cls: type[Part]) -> RenderableType:
    rows = cls.settings()
    if not rows:
        return Text("no settings\n")
    table = Table("key", "kind", "default", box=None, header_style="bold")
    for row in rows:
        table.add_row(*row)
    return table


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
