"""Measuring sensitivity: one short window per layer and side, with everything else exact.

The probe is 2-bit transform coding, whose error has the shape that allocations hand out: the strong components fine,
the weak ones dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.attach import LayerPlan, Plan
from kvbench.calibration.collect import collect
from kvbench.calibration.moments import SINKS
from kvbench.calibration.sensitivity import Sensitivity, SideSensitivity
from kvbench.calibration.statistics import Statistics
from kvbench.calibration.store import calibrate, statistics_folder
from kvbench.codecs.codec import Codec, SideCodec
from kvbench.codecs.quantizers.base import Passthrough
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import LayerGeometry, ModelGeometry
from kvbench.hooks.interception import attention_modules, rotate
from kvbench.hooks.rotary import turned_back
from kvbench.measure.arms import Arm
from kvbench.measure.prompt import LayerPrompt
from kvbench.measure.quality import QualityBench
from kvbench.models.loading import LoadedModel
from kvbench.storage.folders import build_folder, check_folder
from kvbench.texts.windows import Windows

PROBE = "kvtc:bits=2,recent=0,block=8"
LENGTH = 384
"""Tokens of the window; a third of them is compressed at once, the rest is scored and compressed on the way."""
SHORTEST = 64

_FILE = "sensitivity.json"
_RECIPE = 1

Progress = Callable[[int, int], None]


def calibrated(
    loaded: LoadedModel, geometry: ModelGeometry, windows: Windows, progress: Progress | None = None
) -> Statistics:
    """Statistics over ``windows``, from disk or collected, that can measure sensitivity on request.

    The sensitivity is kept in a folder beside them. ``progress`` is called with (windows or probes done, in all).

    Raises:
        FetchError: the cache folder is full or cannot be written.
    """
    statistics = calibrate(loaded, geometry, windows, progress=progress)
    beside = statistics_folder(loaded, windows, fisher=True)

    def measure() -> Sensitivity:
        def build(partial: Path) -> None:
            measured = measure_sensitivity(loaded.model, geometry, statistics, windows.ids, progress)
            (partial / _FILE).write_text(measured.to_json(), "utf-8")

        folder = check_folder(build_folder(beside.with_name(f"{beside.name}-sensitivity-{_RECIPE}"), build))
        return Sensitivity.from_json((folder / _FILE).read_text("utf-8"))

    statistics.measure_sensitivity = measure
    return statistics


def collected(model: PreTrainedModel, geometry: ModelGeometry, ids: Tensor) -> Statistics:
    """Statistics over windows ``ids`` (count, length), kept in memory, that can measure sensitivity on request."""
    statistics = collect(model, geometry, ids)
    statistics.measure_sensitivity = partial(measure_sensitivity, model, geometry, statistics, ids)
    return statistics


@torch.no_grad()
def measure_sensitivity(
    model: PreTrainedModel,
    geometry: ModelGeometry,
    statistics: Statistics,
    windows: Tensor,
    progress: Progress | None = None,
) -> Sensitivity:
    """KLD of compressing every layer's keys and values alone, on the first of ``windows`` (count, length).

    Raises:
        KvbenchError: the windows are too short.
    """
    ids = windows[:1, :LENGTH].to(model.device)
    if ids.shape[1] < SHORTEST:
        raise KvbenchError(f"measuring sensitivity needs windows of {SHORTEST} tokens, these have {ids.shape[1]}")
    none = Arm.of("none", model, geometry, parse("none").fit(geometry))
    bench = QualityBench(none, ids, ids.shape[1] // 3, ids.shape[1])
    plan = parse(PROBE).fit(geometry, statistics)
    prompt = bench.documents()[0].prompt
    sides: dict[tuple[int, str], SideSensitivity] = {}
    probes = [(layer, side) for layer in geometry.compressible for side in ("key", "value")]
    for done, (layer, side) in enumerate(probes):
        codec = _only(plan, layer, side, geometry.dtype)
        arm = Arm.of(
            f"{PROBE} in layer {layer.layer}", model, geometry, Plan({layer.layer: LayerPlan(codec)}, plan.spans)
        )
        kld = bench.score(arm).kld_mean
        exact = prompt.layers[layer.layer]
        states = _keys_before_rope(model, layer, exact) if side == "key" else exact.values
        error = _error(codec.keys if side == "key" else codec.values, states)
        sides[layer.layer, side] = SideSensitivity(kld, error)
        if progress is not None:
            progress(done + 1, len(probes))
    return Sensitivity(sides)


def _only(plan: Plan, layer: LayerGeometry, side: str, dtype: torch.dtype) -> Codec:
    """The probe's codec of ``layer`` with the other side exact."""
    codec = plan.layers[layer.layer].codec
    assert codec is not None
    exact = SideCodec(layer.kv_heads, layer.value_dim if side == "key" else layer.head_dim, None, Passthrough(dtype))
    keys, values = (codec.keys, exact) if side == "key" else (exact, codec.values)
    return Codec(keys, values, codec.keys_before_rope, codec.bands)


def _keys_before_rope(model: PreTrainedModel, layer: LayerGeometry, prompt: LayerPrompt) -> Tensor:
    """The prompt's keys turned back, in fp32 or fp64: the frame that the probe stores them in."""
    if prompt.rotation is None:
        return prompt.keys
    keys = prompt.keys.to(torch.promote_types(prompt.keys.dtype, torch.float32))
    return rotate(
        attention_modules(model)[layer.layer], keys, turned_back(prompt.rotation, keys.dtype), layer.rotary_dims
    )


def _error(codec: SideCodec, states: Tensor) -> float:
    """Squared error of a token of ``states`` (batch, kv heads, tokens, ·) behind the sinks, all heads, on average."""
    states = states[:, :, SINKS:]
    states = states[:, :, : states.shape[2] // codec.quantizer.block * codec.quantizer.block]
    return float((codec.decode(codec.encode(states)).double() - states.double()).square().sum((1, 3)).mean())
