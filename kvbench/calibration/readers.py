"""Layers that read the keys of an earlier one, while those are taken before RoPE to measure them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvbench.hooks.geometry import ModelGeometry
from kvbench.hooks.interception import AttentionCall, Takeover, rotate
from kvbench.kernels.reference import exact_attention


@dataclass(frozen=True)
class _Reader:
    """Attends as the model would, with keys that are still to be rotated."""

    rotary_dims: int

    def attend(self, call: AttentionCall) -> Tensor:
        query, keys = call.query, call.keys
        if call.rotation is not None:
            query, keys = (rotate(call.module, states, call.rotation, self.rotary_dims) for states in (query, keys))
        return exact_attention(query, *call.met(keys, call.values), call.scaling, call.mask, call.softcap, call.sinks)


def reader_takeover(geometry: ModelGeometry, layer: int) -> Takeover | None:
    """Who attends in ``layer``, which is not measured: None, the stock attention, unless it reads a measured one."""
    measured = {each.layer: each.rotary_dims for each in geometry.compressible}
    rotary_dims = measured.get(geometry.readers.get(layer, -1), 0)
    return Takeover(_Reader(rotary_dims), before_rope=True) if rotary_dims else None
