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

    About 5 s; half a minute more where kernels were never compiled.
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


def _doubts(environment: dict[str, Any], noise: Noise, kernels: tuple[KernelState, ...]) -> Iterator[str]:
    load, cores, ratio = environment["load_average"][0], environment["cores"], noise.ratio
    if load > cores:
        yield f"load average {load:.1f} is above the {cores} usable cores: timings compete; wait or stop other work"
    if noise.variation > LARGEST_VARIATION:
        yield f"times of identical work vary by {noise.variation:.1%} (above {LARGEST_VARIATION:.0%}): use more rounds"
    if ratio.low is not None and ratio.high is not None and not ratio.low <= 1 <= ratio.high:
        measured = interval_text(noise)
        yield f"identical work differs from itself, {measured}: do not trust smaller differences; run it again"
    for state in kernels:
        if state.missing is not None:
            yield f"no decode kernels for {state.device} ({state.missing}): speeds are those of plain torch"


def _failures(folder: Path, existing: Path) -> Iterator[str]:
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield f"cache folder {folder} cannot be written; point KVBENCH_CACHE to another folder"


def interval_text(noise: Noise) -> str:
    """The ratio of identical work to itself with its interval."""
    ratio = noise.ratio
    if ratio.low is None or ratio.high is None:
        return f"ratio {ratio.ratio:.3f}"
    half = (ratio.high - ratio.low) / 2
    return f"ratio {significant(ratio.ratio, half)} [{significant(ratio.low, half)}, {significant(ratio.high, half)}]"
