"""``kvbench calibrate`` and ``kvbench fit``: statistics, and a method's setting for a target."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvbench.cli.console import err, out, say
from kvbench.cli.early import refuse_slips
from kvbench.cli.options import DEFAULT_MODEL, Device, Dtype, Json, Model, Whole
from kvbench.compressors.catalogue import refuse_wrong_keys
from kvbench.errors import EXIT_OK

if TYPE_CHECKING:
    from kvbench.runs.fit import Fit


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Search:
    """What a setting is searched on."""

    tokens: Annotated[Whole, Parameter(help="Length that bytes are counted at and KLD is measured on.")] = 1024
    text: Annotated[str, Parameter(help="Text to calibrate on, and to search a KLD on (other documents).")] = "essays"
    windows: Annotated[Whole, Parameter(help="Calibration windows.")] = 8
    length: Annotated[Whole, Parameter(help="Tokens per calibration window.")] = 1024
    documents: Annotated[Whole, Parameter(help="Documents that KLD is measured on.")] = 2


def calibrate(
    *,
    model: Model = DEFAULT_MODEL,
    text: Annotated[str, Parameter(help="Calibration text; essays+pydoc alternates two.")] = "essays",
    windows: Annotated[Whole, Parameter(help="Windows of the calibration split.")] = 8,
    length: Annotated[Whole, Parameter(help="Tokens per window.")] = 1024,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> int:
    """Collect the statistics that compressors are fitted from; later runs find them by content."""
    refuse_slips(model=model, text=text, dtype=dtype)
    from kvbench.measure.bench import CalibrationSource, ModelBench
    from kvbench.runs.progress import counted

    with counted(err, "calibrating") as report:
        folder = ModelBench(model, dtype, device, report).statistics_folder(CalibrationSource(text, windows, length))
    print(folder)
    return EXIT_OK


def fit(
    *,
    method: Annotated[str, Parameter(help="A spec without its bits, rank or budget: kvtc:recent=0, pca+int:bits=4.")],
    target: Annotated[str, Parameter(help="bits=3, bytes=3MiB or kld=0.02.")],
    model: Model = DEFAULT_MODEL,
    search: Search = Search(),
    save: Annotated[Path | None, Parameter(help="Folder to write to; default runs/fits/<model-method-target>.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json_: Json = False,
) -> int:
    """Find a method's setting for a target, and save the fitted plan: bases, bit widths and ranks of every layer.

    bits=3: all allocated bytes of the cache at --tokens, per K or V element.
    bytes=3MiB: the same, of one sequence (B, kB, MB, GB, KiB, MiB, GiB).
    kld=0.02: the cheapest setting whose measured KLD (nats per token) is not above it.

    Use the folder like any compressor, without calibration, on the same weights: --compressor saved:path=FOLDER.
    An interrupted search goes on where it stopped. Exit code 2, and the nearest, if nothing reaches the target.
    """
    from kvbench.runs.targets import parse_target

    refuse_slips(model=model, text=search.text, dtype=dtype)
    refuse_wrong_keys(method)
    parse_target(target)
    from kvbench.runs.fit import fit_method
    from kvbench.runs.progress import counted

    with counted(err, "fitting") as report:
        fitted, folder = fit_method(model, method, target, save, dtype, device, report, **asdict(search))
    if json_:
        print(fitted.model_dump_json())
    else:
        out.print(fit_view(fitted))
        say(f"saved: {folder} · use it: --model {model} --compressor {shlex.quote(f'saved:path={folder}')}")
    return EXIT_OK


def fit_view(fit: Fit) -> RenderableType:
    """What ``kvbench fit`` found, and what every layer got."""
    request = fit.request
    told = Table.grid(padding=(0, 2))
    told.add_row("spec", Text(fit.spec, style="bold"))
    told.add_row("bits per element", f"{fit.measured_bits:.3f} measured, {fit.predicted_bits:.3f} predicted")
    told.add_row("bytes", f"{fit.measured_bytes:,} measured, {fit.predicted_bytes:,} predicted")
    if fit.kld is not None:
        told.add_row(
            "KLD", f"{fit.kld:.4g} measured on {request.documents} × {request.tokens} tokens of {request.text}"
        )
        tried = ", ".join(f"{probe.kld:.2g} ({probe.spec})" for probe in fit.probes)
        told.add_row("settings tried", Text(tried))
    title = Text(f"{request.method} for {request.target} at {request.tokens} tokens on {request.model}\n", style="bold")
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
