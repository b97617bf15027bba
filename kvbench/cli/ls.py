"""``kvbench ls``: what exists. What needs torch is imported where it is used: a list of suites need not wait for it."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from kvbench.cli.console import out, say
from kvbench.cli.listing import Listing
from kvbench.cli.options import Json
from kvbench.compressors.catalogue import catalogue
from kvbench.compressors.names import plugins
from kvbench.errors import EXIT_OK, KvbenchError, PluginError, unknown

if TYPE_CHECKING:
    from kvbench.compressors.outline import Outline
    from kvbench.hardware.devices import Accelerator
    from kvbench.runs.store import RunStore

Rows = list[dict[str, str]]


def ls(
    what: Annotated[
        str, Parameter(help="compressors, models, families, texts, suites, devices or runs.")
    ] = "compressors",
    folder: Annotated[Path | None, Parameter(help="Of runs: where the results folders lie; default runs.")] = None,
    /,
    *,
    json_: Json = False,
) -> int:
    """List what exists: compressors, models, families, texts, suites or devices, and the runs in a folder."""
    if what not in (*LISTS, "runs"):
        raise unknown("list", what, (*LISTS, "runs"))
    if folder is not None and what != "runs":
        raise KvbenchError(f"{what} lie in no folder; leave {folder} out")
    rows = _runs(folder or Path("runs")) if what == "runs" else LISTS[what]()
    if json_:
        print(json.dumps(rows, indent=1))
    else:
        out.print(list_table(rows))
    return EXIT_OK


def _compressors() -> Rows:
    """kvbench's own as they are written down; of other packages each is imported."""
    shipped = [_row(entry.outline, entry.attends) for entry in catalogue().values()]
    return [*shipped, *(_foreign(name) for name in sorted(plugins()))]


def _row(outline: Outline, attends: str) -> dict[str, str]:
    return {
        "name": outline.name,
        "family": outline.family,
        "brings": ", ".join(outline.roles),
        "needs": "calibration" if outline.needs_calibration else "",
        "attends": attends,
        "paper": outline.paper,
    }


def _foreign(name: str) -> dict[str, str]:
    """One compressor of another package: imports its code, and torch with it."""
    from kvbench.compressors import registry
    from kvbench.measure.small import attends_on_small, example

    try:
        cls = registry.find(name)
    except PluginError as error:  # a broken package must not hide the others
        return {"name": name, "family": "broken", "brings": str(error), "needs": "", "attends": "", "paper": ""}
    spec = example(cls)
    return _row(cls.outline(), "" if spec is None else attends_on_small(spec) or "")


def _models() -> Rows:
    from kvbench.models import registry as models

    entries = [models.find(name) for name in models.names()]
    rows = [
        {"name": entry.name, "source": entry.source, "family": entry.family, "licence": entry.licence}
        for entry in entries
    ]
    return [*rows, {"name": "random:<family>", "source": "random", "family": "any supported", "licence": ""}]


def _families() -> Rows:
    """Every decoder family of transformers: which layers are compressed, or why none can be."""
    from kvbench.models.families import surveyed

    version, families = surveyed()
    installed = importlib.metadata.version("transformers")
    if installed != version:
        say(f"families of transformers {version}; {installed} is installed, which may have others")
    return [
        {
            "name": name,
            "attaches": "no" if verdict.refused else "yes",
            "compressed, or why not": verdict.refused or ", ".join(verdict.compressed) or "nothing",
            "kept as it is": ", ".join(verdict.kept),
            "keys before RoPE": verdict.before_rope,
        }
        for name, verdict in families.items()
    ]


def _texts() -> Rows:
    from kvbench.texts import registry as texts

    entries = [texts.find(name) for name in texts.names()]
    return [{"name": entry.name, "source": entry.source, "what": entry.description} for entry in entries]


def _suites() -> Rows:
    from kvbench.runs.suites import load_suite, suite_names

    suites = [load_suite(name) for name in suite_names()]
    return [
        {"name": suite.name, "models": ", ".join(suite.models), "compressors": ", ".join(suite.compressors)}
        for suite in suites
    ]


def _devices() -> Rows:
    from kvbench.hardware.devices import CPU, accelerator, accelerator_names

    return [_device(accelerator(name)) for name in accelerator_names() if name != CPU]


def _device(device: Accelerator) -> dict[str, str]:
    return {
        "name": device.key,
        "GB": f"{device.memory / 1e9:g}",
        "GB/s": f"{device.bandwidth / 1e9:g}",
        "TFLOP/s": ", ".join(f"{rate / 1e12:g} {precision}" for precision, rate in device.operations.items()),
        "link GB/s": f"{2 * device.link / 1e9:g}",
        "source": device.source,
    }


def _runs(folder: Path) -> Rows:
    from kvbench.runs.store import RunStore

    stores = [RunStore(path.parent) for path in sorted(folder.glob("*/manifest.json"))]
    if not stores:
        raise KvbenchError(f"{folder} has no results folders; kvbench run --out {folder}/NAME makes one")
    return [_run(store) for store in stores]


def _run(store: RunStore) -> dict[str, str]:
    status, records = store.status(), store.records()
    days = sorted({f"{record.provenance.started:%Y-%m-%d}" for record in records})
    return {
        "name": store.folder.name,
        "suite": store.manifest.suite if store.manifest else "",
        "done": f"{status.done} of {status.expected}",
        "failed": str(status.failed or ""),
        "measured": " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "",
        "commit": ", ".join(sorted({(record.provenance.git_sha or "")[:10] for record in records})),
    }


LISTS: dict[str, Callable[[], Rows]] = {
    "compressors": _compressors,
    "models": _models,
    "families": _families,
    "texts": _texts,
    "suites": _suites,
    "devices": _devices,
}


def list_table(rows: Rows) -> Listing:
    """One column per key."""
    return Listing([*rows[0]], [[*row.values()] for row in rows])
