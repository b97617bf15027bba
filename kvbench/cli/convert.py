"""``kvbench convert``: a model of another architecture, with latent attention."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kvbench.cli.console import err, out, say
from kvbench.cli.early import refuse_slips
from kvbench.cli.options import DEFAULT_MODEL, Device, Dtype, Json, Model, Whole
from kvbench.errors import EXIT_OK

if TYPE_CHECKING:
    from kvbench.conversion.convert import Conversion


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the bases are fitted to."""

    text: Annotated[str, Parameter(help="Calibration text; essays+pydoc alternates two.")] = "essays"
    windows: Annotated[Whole, Parameter(help="Windows of the calibration split.")] = 8
    length: Annotated[Whole, Parameter(help="Tokens per window.")] = 1024


def convert(
    *,
    compressor: Annotated[str, Parameter(help="mla:latent=…,rope_dims=…,choice=shared, or a saved one.")],
    out_dir: Annotated[Path, Parameter(name="--out", help="Folder to write to; it must not exist or be empty.")],
    model: Model = DEFAULT_MODEL,
    calibration: Calibration = Calibration(),
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json_: Json = False,
) -> int:
    """Write a llama, qwen2 or mistral model as one with DeepSeek's latent attention, which stock transformers loads.

    mla mixes keys across heads so that RoPE stays in rope_dims of them, and keeps one latent of all the rest. The
    folder is a checkpoint of DeepSeek-V3's architecture without experts, whose cache holds latent + 1 + rope_dims
    elements of a token in a layer. It is read back and compared before it gets its name.

    The weights are not tuned. Every token is a latent, the first and the most recent ones too, so expect more loss than
    --compressor mla:… has on the original model, which keeps those exact.
    """
    refuse_slips(model=model, compressors=[compressor], text=calibration.text, dtype=dtype)
    from kvbench.conversion.convert import convert_model
    from kvbench.measure.bench import CalibrationSource
    from kvbench.runs.progress import counted

    source = CalibrationSource(**asdict(calibration))
    with counted(err, "calibrating") as report:
        made = convert_model(model, compressor, out_dir, source, dtype, device, report)
    if json_:
        print(made.model_dump_json())
    else:
        out.print(conversion_view(made))
        say(f"written: {out_dir} · use it: --model {shlex.quote(str(out_dir))}")
    return EXIT_OK


def conversion_view(made: Conversion) -> RenderableType:
    """What came out, and how near it is to what it was made of."""
    table = Table.grid(padding=(0, 2))
    ratio = made.elements_before / made.elements
    elements = f"{made.elements} ({made.kv_lora_rank} latent, {made.qk_rope_head_dim} RoPE)"
    rows = (
        ("made of", f"{made.model} by {made.compressor}, in {made.dtype}"),
        ("cache", f"{elements} elements a token and layer, {made.elements_before} before: {ratio:.2f} times fewer"),
        ("logits", f"within {made.logits_differ:.1e} of their range of the model run through the same latents"),
    )
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value))
    return table
