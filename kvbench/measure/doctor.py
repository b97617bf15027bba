"""Is this machine fit to measure on? Everything that makes numbers untrustworthy, found out in a few seconds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvbench.hardware.bandwidth import Bandwidth, measure_bandwidth
from kvbench.hardware.environment import governor, provenance
from kvbench.measure.kernel_state import KernelState, kernel_states
from kvbench.measure.noise import Noise, measure_noise
from kvbench.measure.statistics import significant
from kvbench.storage.folders import cache_dir

LARGEST_VARIATION = 0.03
"""Repeated timings that spread by more than 3 % hide the differences that compressors make."""


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found. ``warnings`` make numbers doubtful; ``problems`` keep kvbench from working at all."""

    environment: dict[str, Any]
    governor: str | None
    cache_folder: str
    cache_free_bytes: int
    bandwidth: Bandwidth
    noise: Noise
    kernels: tuple[KernelState, ...]
    warnings: tuple[str, ...]
    problems: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Examine this machine and process: versions, threads, cache folder, memory bandwidth, timing noise, kernels.

    About 5 s; a minute more where kernels were never compiled.
    """
    environment = provenance("cpu", datetime.now(UTC))  # first, so that its load average is not the doctor's own
    bandwidth, noise, kernels = measure_bandwidth(), measure_noise(), kernel_states()
    folder = cache_dir()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return Diagnosis(
        environment=environment,
        governor=governor(),
        cache_folder=str(folder),
        cache_free_bytes=shutil.disk_usage(existing).free,
        bandwidth=bandwidth,
        noise=noise,
        kernels=kernels,
        warnings=tuple(_doubts(environment, noise, kernels)),
        problems=tuple(_failures(folder, existing)),
    )


def to_json(diagnosis: Diagnosis) -> str:
    """The diagnosis as one JSON object: sizes in bytes, bandwidth in bytes/s, times in ISO 8601."""
    return json.dumps(asdict(diagnosis), default=datetime.isoformat)


def render(diagnosis: Diagnosis) -> RenderableType:
    """The diagnosis as a table for people, with its warnings and problems below."""
    table = Table.grid(padding=(0, 2))
    for name, value in _rows(diagnosis):
        table.add_row(Text(name, style="bold"), Text(value))
    verdicts = [Text(f"problem: {line}", style="bold red") for line in diagnosis.problems]
    verdicts += [Text(f"warning: {line}", style="yellow") for line in diagnosis.warnings]
    return Group(table, Text(), *(verdicts or [Text("fit to measure on", style="green")]))


def _doubts(environment: dict[str, Any], noise: Noise, kernels: tuple[KernelState, ...]) -> Iterator[str]:
    load, cores, ratio = environment["load_average"][0], environment["cores"], noise.ratio
    if load > cores:
        yield f"load average {load:.1f} is above the {cores} usable cores: timings compete; wait or stop other work"
    if noise.variation > LARGEST_VARIATION:
        yield f"times of identical work vary by {noise.variation:.1%} (above {LARGEST_VARIATION:.0%}): use more rounds"
    if ratio.low is not None and ratio.high is not None and not ratio.low <= 1 <= ratio.high:
        yield f"identical work differs from itself, {_interval(noise)}: do not trust smaller differences; run it again"
    for state in kernels:
        if state.missing is not None:
            yield f"no decode kernels for {state.device} ({state.missing}): speeds are those of plain torch"


def _failures(folder: Path, existing: Path) -> Iterator[str]:
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield f"cache folder {folder} cannot be written; point KVBENCH_CACHE to another folder"


def _rows(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
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
    yield "A/A test", f"{_interval(noise)}, variation {noise.variation:.1%}"
    for state in diagnosis.kernels:
        yield f"kernels, {state.device}", str(state)


def _commit(environment: dict[str, Any]) -> str:
    commit = environment["git_sha"]
    return f"{commit[:10]}{' with changes' if environment['git_dirty'] else ''}" if commit else "unknown"


def _speeds(single: float, together: float, threads: int) -> str:
    return f"{single / 1e9:.1f} GB/s with 1 thread, {together / 1e9:.1f} GB/s with {threads}"


def _interval(noise: Noise) -> str:
    ratio = noise.ratio
    if ratio.low is None or ratio.high is None:
        return f"ratio {ratio.ratio:.3f}"
    half = (ratio.high - ratio.low) / 2
    return f"ratio {significant(ratio.ratio, half)} [{significant(ratio.low, half)}, {significant(ratio.high, half)}]"
