"""``kvbench project``: what hardware allows a model and a compressor, from a config alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Group, RenderableType
from rich.text import Text

from kvbench.cli.console import out
from kvbench.cli.listing import Listing
from kvbench.cli.options import Json, Whole
from kvbench.compressors.catalogue import refuse_wrong
from kvbench.errors import EXIT_OK, KvbenchError, unknown
from kvbench.hardware.devices import CPU, WIDTH, Accelerator, accelerator, processor

if TYPE_CHECKING:
    from kvbench.projection.project import Projection
    from kvbench.projection.step_time import Setting


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Serving:
    """How the model is served."""

    context: Annotated[str | None, Parameter(help="Tokens: 8k, a list, or 4k..1m doubling; default 4k to all.")] = None
    batch: Annotated[str, Parameter(help="Rows over all devices, a list, or max: as many as fit.")] = "max"
    weights: Annotated[str, Parameter(help="fp8, bf16 or fp32; the cache is bf16 beside the first two.")] = "bf16"
    tp: Annotated[Whole, Parameter(help="Tensor parallelism: devices that share heads and MLPs.")] = 1
    ep: Annotated[Whole, Parameter(help="Expert parallelism: devices that share routed experts.")] = 1


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Reached:
    """What of a device's peaks is reached."""

    compute_efficiency: Annotated[float, Parameter(help="Share of peak arithmetic.")] = 1.0
    memory_efficiency: Annotated[float, Parameter(help="Share of memory bandwidth.")] = 1.0
    link_efficiency: Annotated[float, Parameter(help="Share of the bandwidth between devices.")] = 1.0
    usable_memory: Annotated[float, Parameter(help="Share of memory that weights and caches may take.")] = 1.0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Processor:
    """The device cpu: this machine, measured in a few seconds, unless bandwidth or arithmetic are given."""

    cpu_bandwidth: Annotated[float | None, Parameter(help="GB/s read from memory.")] = None
    cpu_tflops: Annotated[float | None, Parameter(help="TFLOP/s of a large matrix product.")] = None
    cpu_memory: Annotated[float | None, Parameter(help="GB; default: what is free.")] = None


def project(
    *,
    model: Annotated[str, Parameter(help="A public model, hub model in the local cache, folder or config.json.")],
    device: Annotated[list[str], Parameter(help="Devices separated by commas.")] = ["h100"],  # noqa: B006
    compressor: Annotated[
        list[str], Parameter(help="Specs separated by commas; default: none, and mla if the model has it.")
    ] = [],  # noqa: B006
    serving: Serving = Serving(),
    reached: Reached = Reached(),
    cpu: Processor = Processor(),
    out_dir: Annotated[Path | None, Parameter(name="--out", help="Folder for table.md and a chart.")] = None,
    json_: Json = False,
) -> int:
    """Project bytes, what fits and the least time of a decode step from a model's config: no weights, nothing runs.

    none is the cache of every head's keys and values, mla the latent of models that were trained with one; on those,
    other compressors act on that latent. Batches and times are limits, not measurements.
    """
    from kvbench.projection.arguments import batches_of, contexts_of, names_of, specs_of
    from kvbench.projection.caches import NATIVE

    devices = _devices(names_of(device), serving.weights, cpu)
    batches, specs = batches_of(serving.batch), specs_of(compressor)
    refuse_wrong(*(spec for spec in specs if spec != NATIVE))
    if not 0 < reached.usable_memory <= 1:
        raise KvbenchError(f"usable memory {reached.usable_memory:g} must be a share, above 0 and at most 1")
    settings = _settings(model, devices, serving, reached)
    shape = settings[0].shape
    from kvbench.projection.project import project as projected

    contexts = contexts_of(serving.context or f"{min(4096, shape.context)}..{shape.context}", shape.context, shape.name)
    specs = specs or (["none"] if shape.latent is None else ["mla", "none"])
    rows = projected(settings, specs, contexts, batches, reached.usable_memory)
    if json_:
        print(json.dumps([row.to_json() for row in rows], indent=1))
    else:
        out.print(render(rows, reached.usable_memory))
    if out_dir is not None:
        from kvbench.report.projection_chart import write_projection

        for path in write_projection(rows, reached.usable_memory, out_dir):
            if not json_:
                print(path)
    return EXIT_OK


def _devices(names: list[str], weights: str, cpu: Processor) -> list[Accelerator]:
    if weights not in WIDTH:
        raise unknown("precision of weights", weights, WIDTH)
    if not names:
        raise KvbenchError("name at least one device")
    chosen = [accelerator(name) if name != CPU else None for name in names]  # slips first, measuring after
    given = (cpu.cpu_bandwidth, 1e9), (cpu.cpu_tflops, 1e12), (cpu.cpu_memory, 1e9)
    bandwidth, operations, memory = (None if value is None else value * unit for value, unit in given)
    if None not in chosen:
        return [each for each in chosen if each is not None]
    if bandwidth is None and operations is None:
        from kvbench.projection.this_machine import this_processor

        here = this_processor(memory)
    else:  # another machine's, or on paper
        here = processor(bandwidth, operations, memory)
    return [here if each is None else each for each in chosen]


def _settings(model: str, devices: list[Accelerator], serving: Serving, reached: Reached) -> list[Setting]:
    from kvbench.models.public_configs import read_config
    from kvbench.projection.parallel import Parallel
    from kvbench.projection.shape import shape_of
    from kvbench.projection.step_time import Limits, Setting

    limits = Limits(reached.compute_efficiency, reached.memory_efficiency, reached.link_efficiency)
    if not all(0 < share <= 1 for share in vars(limits).values()):
        raise KvbenchError("efficiencies are shares of a peak: above 0 and at most 1")
    shape, parallel = shape_of(*read_config(model)), Parallel(serving.tp, serving.ep)
    parallel.check(shape)
    if parallel.devices > 1 and any(device.key == CPU for device in devices):
        raise KvbenchError("the device cpu stands for one machine: leave out --tp and --ep")
    return [Setting(shape, parallel, serving.weights, device, limits) for device in devices]  # type: ignore[arg-type]


def render(rows: list[Projection], usable: float) -> RenderableType:
    """A table for every device, with what it assumes below."""
    from kvbench.report.projection import by_setting, heading, notes

    shape = rows[0].setting.shape
    sizes = f"{shape.weights.total / 1e9:,.4g} B parameters, {shape.weights.active / 1e9:,.3g} B of them a token"
    shown: list[RenderableType] = [Text(f"{shape.name}: {sizes}, context {shape.context:,}")]
    for setting, its_rows in by_setting(rows):
        shown += [Text(f"\n{heading(setting)}", style="bold"), _table(its_rows)]
        shown += [Text(note, style="dim") for note in notes(setting, usable)]
    return Group(*shown)


def _table(rows: list[Projection]) -> Listing:
    """Without the most rows that fit where the rows are those."""
    from kvbench.report.projection import COLUMNS, cells

    largest = all(row.batch == row.largest_batch for row in rows)
    shown = [index for index, title in enumerate(COLUMNS) if not (largest and title == "most rows")]
    numbers = frozenset(COLUMNS) - {"compressor", "bound by"}
    return Listing(
        [COLUMNS[index] for index in shown],
        [[texts[index] for index in shown] for texts in map(cells, rows)],
        numbers,
        frozenset(index for index, row in enumerate(rows) if row.step is None),
    )
