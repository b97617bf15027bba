"""``kvbench generate``: one prompt completed with and without compression."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kvbench.cli.console import err, out
from kvbench.cli.early import refuse_slips
from kvbench.cli.options import DEFAULT_MODEL, Device, Dtype, Json, Model, Whole
from kvbench.errors import EXIT_OK

if TYPE_CHECKING:
    from kvbench.measure.generation import Completion, SideBySide


def generate(
    prompt: Annotated[str, Parameter(help="Text to continue.")],
    /,
    *,
    model: Model = DEFAULT_MODEL,
    compressor: Annotated[str, Parameter(help="Spec of the compressor.")] = "kvtc:bits=4",
    tokens: Annotated[Whole, Parameter(help="New tokens.")] = 64,
    chat: Annotated[bool, Parameter(help="Wrap the prompt in the model's chat template.")] = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json_: Json = False,
) -> int:
    """Complete a prompt with and without compression, side by side, and show where they part."""
    refuse_slips(model=model, compressors=[compressor], dtype=dtype)
    from dataclasses import asdict

    from kvbench.compressors.compressor import parse
    from kvbench.measure.bench import CalibrationSource, ModelBench
    from kvbench.measure.generation import prompt_ids, side_by_side
    from kvbench.runs.progress import counted

    parsed = parse(compressor)
    with counted(err, "calibrating") as report:
        bench = ModelBench(model, dtype, device, report)
        ids = prompt_ids(bench.loaded, prompt, tokens, chat)
        arm = bench.arm(parsed, CalibrationSource("essays", 8, 1024))
    result = side_by_side(bench.loaded, bench.baselines()[0], arm, ids, tokens)
    if json_:
        print(json.dumps(asdict(result)))
    else:
        out.print(completion_view(result, str(parsed)))
    return EXIT_OK


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


def _panel(title: str, completion: Completion) -> Panel:
    footer = f"{completion.cache_bytes / 2**20:.2f} MiB, {completion.body_tokens} tokens compressed"
    return Panel(Text(completion.text), title=title, subtitle=footer)
