"""Moments of several layers side by side: what bases across layers are fitted to.

They are large (5,760 squared for all keys of a model of 30 layers and 192 channels), so they are collected in a pass of
their own, when a compressor needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.calibration.moments import SINKS, second_moment, token_rows
from kvbench.calibration.readers import reader_takeover
from kvbench.hooks.geometry import LayerGeometry, ModelGeometry
from kvbench.hooks.interception import AttentionCall, Interception, Takeover, rotate
from kvbench.hooks.rotations import Rotation
from kvbench.kernels.reference import exact_attention

Group = tuple[int, ...]
"""Layer indices in ascending order."""


@dataclass(frozen=True)
class AcrossLayers:
    """Covariances of every group of layers: keys before RoPE and values, all channels of a layer after those before.

    ``keys`` and ``values`` hold one (channels of the group, channels of the group) matrix per group, fp64.
    """

    keys: dict[Group, Tensor]
    values: dict[Group, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """Flat names for storage: ``keys.<layers>`` and ``values.<layers>``."""
        sides = {"keys": self.keys, "values": self.values}
        return {
            f"{side}.{'-'.join(map(str, group))}": moments[group]
            for side, moments in sides.items()
            for group in moments
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> AcrossLayers:
        """The inverse of :meth:`tensors`."""
        sides: dict[str, dict[Group, Tensor]] = {"keys": {}, "values": {}}
        for name, tensor in tensors.items():
            side, _, layers = name.partition(".")
            sides[side][tuple(map(int, layers.split("-")))] = tensor
        return cls(**sides)


class _Keeper:
    """Attends as usual and keeps one window's keys and values of one layer."""

    def __init__(self, geometry: LayerGeometry) -> None:
        self.geometry = geometry
        self.states: tuple[Tensor, Tensor] | None = None

    def attend(self, call: AttentionCall) -> Tensor:
        self.states = token_rows(call.keys), token_rows(call.values)
        query, keys = call.query, call.keys
        if call.rotation is not None:
            query, keys = (
                rotate(call.module, states, call.rotation, self.geometry.rotary_dims) for states in (query, keys)
            )
        return exact_attention(query, *call.met(keys, call.values), call.scaling, call.mask, call.softcap, call.sinks)


class _Keepers:
    """Handler that sends every full-attention layer to its keeper."""

    def __init__(self, geometry: ModelGeometry) -> None:
        self._geometry = geometry
        self.layers = {layer.layer: _Keeper(layer) for layer in geometry.compressible}

    def prepare(self, layer: int, cache: Any, rotation: Rotation | None, positions: Tensor | None) -> Takeover | None:
        if layer not in self.layers:
            return reader_takeover(self._geometry, layer)
        return Takeover(self.layers[layer], before_rope=self.layers[layer].geometry.rotary_dims > 0)

    def take(self, group: Group, side: int) -> Tensor:
        """Keys (0) or values (1) of the group's layers side by side, (tokens, channels)."""
        states = [self.layers[index].states for index in group]
        return torch.cat([pair[side] for pair in states if pair is not None], 1)


@torch.no_grad()
def collect_across(
    model: PreTrainedModel,
    geometry: ModelGeometry,
    windows: Tensor,
    groups: Sequence[Group],
    progress: Callable[[int, int], None] | None = None,
) -> AcrossLayers:
    """Covariances over ``windows`` (count, length), whose first tokens stay out as sinks; one forward pass."""
    keepers = _Keepers(geometry)
    sums: dict[tuple[Group, int], tuple[Tensor, Tensor]] = {}
    with Interception(model, keepers):
        for index, ids in enumerate(windows.to(model.device)):
            model(ids[None], use_cache=False, logits_to_keep=1)
            for group, side in product(groups, (0, 1)):
                rows = keepers.take(group, side)
                second, total = second_moment(rows, rows), rows.double().sum(0)
                if (group, side) in sums:
                    before = sums[group, side]
                    second, total = before[0].add_(second), before[1] + total
                sums[group, side] = second, total
            if progress is not None:
                progress(index + 1, len(windows))
    count = len(windows) * (windows.shape[1] - SINKS)
    covariances = {
        name: (second / count).cpu() - torch.outer(total, total).cpu() / count**2
        for name, (second, total) in sums.items()
    }
    return AcrossLayers(*({group: covariances[group, side] for group in groups} for side in (0, 1)))
