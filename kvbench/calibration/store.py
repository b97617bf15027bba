"""Statistics on disk: one safetensors file per model, text and recipe, found again by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from kvbench.calibration.across import AcrossLayers, Group, collect_across
from kvbench.calibration.collect import collect
from kvbench.calibration.moments import SINKS
from kvbench.calibration.statistics import Statistics
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import ModelGeometry
from kvbench.models.loading import LoadedModel
from kvbench.storage.folders import build_folder, cache_dir, check_folder
from kvbench.texts.windows import Windows

RECIPE = 9
"""Raised whenever what is collected changes; older files are then left alone and never read."""

_FILE = "statistics.safetensors"


def statistics_folder(loaded: LoadedModel, windows: Windows, fisher: bool) -> Path:
    """Where the statistics of this model (weights and dtype) over these windows live.

    Device and threads are part of it: they round differently, which tips bit widths, and what a compressor is fitted on
    must not depend on what ran before.
    """
    computed = [str(loaded.model.dtype), loaded.model.device.type, torch.get_num_threads()]
    key = [RECIPE, SINKS, loaded.weights_sha256, *computed, windows.sha256, fisher]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return cache_dir() / "calibration" / f"{loaded.name.replace('/', '--').replace(':', '-')[:40]}-{digest}"


def calibrate(
    loaded: LoadedModel,
    geometry: ModelGeometry,
    windows: Windows,
    *,
    fisher: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Load the statistics of ``loaded`` over ``windows``, collecting and saving them if they are not there yet.

    Raises:
        FetchError: the cache folder is full or cannot be written.
    """
    folder = statistics_folder(loaded, windows, fisher)
    identity = (loaded.name, loaded.weights_sha256, windows.sha256)

    def build(unfinished: Path) -> None:
        collected = collect(loaded.model, geometry, windows.ids, fisher=fisher, identity=identity, progress=progress)
        names = dict(zip(("model", "weights_sha256", "text_sha256"), identity, strict=True))
        save_file(
            {name: tensor.contiguous() for name, tensor in collected.tensors().items()}, unfinished / _FILE, names
        )

    statistics = read_statistics(check_folder(build_folder(folder, build)))
    statistics.measure_across = partial(_across, loaded, geometry, windows, folder)
    return statistics


def _across(
    loaded: LoadedModel, geometry: ModelGeometry, windows: Windows, folder: Path, groups: tuple[Group, ...]
) -> AcrossLayers:
    """Moments across ``groups`` of layers, in a folder beside the statistics."""

    def build(unfinished: Path) -> None:
        save_file(collect_across(loaded.model, geometry, windows.ids, groups).tensors(), unfinished / _FILE)

    digest = hashlib.sha256(json.dumps(groups).encode()).hexdigest()[:8]
    beside = build_folder(folder.with_name(f"{folder.name}-across-{digest}"), build)
    return AcrossLayers.from_tensors(load_file(check_folder(beside) / _FILE))


def read_statistics(folder: Path) -> Statistics:
    """Read statistics from a folder.

    Raises:
        KvbenchError: the file is damaged.
    """
    try:
        with safe_open(folder / _FILE, framework="pt") as file:
            names = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise KvbenchError(f"statistics in {folder} are damaged ({error}); delete it to collect them again") from error
    return Statistics.from_tensors(tensors, names["model"], names["weights_sha256"], names["text_sha256"])
