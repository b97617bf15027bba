"""``kvbench doctor``: is this machine fit to measure on?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvbench.cli.console import out
from kvbench.cli.options import Json
from kvbench.errors import EXIT_OK, EXIT_USAGE

if TYPE_CHECKING:
    from kvbench.measure.doctor import Diagnosis


def doctor(*, json_: Json = False) -> int:
    """Environment, threads, measured memory bandwidth, decode kernels and an A/A noise check of this machine."""
    from kvbench.measure.doctor import diagnose, to_json

    diagnosis = diagnose()
    if json_:
        print(to_json(diagnosis))
    else:
        out.print(render(diagnosis))
    return EXIT_USAGE if diagnosis.problems else EXIT_OK


def render(diagnosis: Diagnosis) -> RenderableType:
    """The diagnosis as a table for people, with its warnings and problems below."""
    table = Table.grid(padding=(0, 2))
    for name, value in _rows(diagnosis):
        table.add_row(Text(name, style="bold"), Text(value))
    verdicts = [Text(f"problem: {line}", style="bold red") for line in diagnosis.problems]
    verdicts += [Text(f"warning: {line}", style="yellow") for line in diagnosis.warnings]
    return Group(table, Text(), *(verdicts or [Text("fit to measure on", style="green")]))


def _rows(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    from kvbench.measure.doctor import interval_text

    env, bandwidth, noise = diagnosis.environment, diagnosis.bandwidth, diagnosis.noise
    yield "kvbench", f"{env['kvbench']}, commit {_commit(env)}"
    yield "python", f"{env['python']} on {env['platform']}"
    yield "torch", env["torch_build"]
    yield "packages", ", ".join(f"{name} {version}" for name, version in env["packages"].items() if name != "torch")
    yield "processor", f"{env['cpu']}, governor {diagnosis.governor or 'unknown'}"
    yield "threads", f"{env['threads']} of {env['cores']} usable cores, load {env['load_average'][0]:.2f}"
    yield "memory", f"{env['memory_total'] / 2**30:.1f} GiB"
    yield "cache folder", f"{diagnosis.cache_folder}, {diagnosis.cache_free_bytes / 2**30:.1f} GiB free"
    yield "memory read", _speeds(bandwidth.read_single, bandwidth.read, bandwidth.threads)
    yield "memory copy", f"{_speeds(bandwidth.copy_single, bandwidth.copy, bandwidth.threads)} (read + written)"
    yield "A/A test", f"{interval_text(noise)}, variation {noise.variation:.1%}"
    for state in diagnosis.kernels:
        yield f"kernels, {state.device}", str(state)


def _commit(environment: dict[str, Any]) -> str:
    commit = environment["git_sha"]
    return f"{commit[:10]}{' with changes' if environment['git_dirty'] else ''}" if commit else "unknown"


def _speeds(single: float, together: float, threads: int) -> str:
    return f"{single / 1e9:.1f} GB/s with 1 thread, {together / 1e9:.1f} GB/s with {threads}"
