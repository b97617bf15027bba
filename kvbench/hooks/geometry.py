"""The shape of a model's attention, measured instead of read from config names.

One forward pass with NaN as cos and sin tells, per layer, how many KV heads there are, how wide keys and values are
and *which key dimensions RoPE rotates* (those that come out NaN), for families that never heard of kvbench.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kvbench.errors import KvbenchError, UnsupportedModelError
from kvbench.hooks.interception import AttentionCall, Interception, Takeover
from kvbench.hooks.rotations import Rotation, rotation_of
from kvbench.hooks.turns import Turn, measured_turn


@dataclass(frozen=True)
class LayerGeometry:
    """One attention layer. ``rotary_dims`` counts the leading key dimensions that RoPE rotates (0: none).

    ``rope_group`` numbers the distinct rotation tables of the model; ``sliding_window`` is in tokens, None = full.
    ``turn`` says how RoPE rotates, for kernels that do it by themselves; None where that is not of the usual form.
    ``angles`` (rotary_dims,) of the columns of cos and sin are in radians a position; with a turn, those of the key
    dimensions. ``latent``: keys and values are the RoPE keys and latents of multi-head latent attention, where queries
    meet keys and values side by side.
    """

    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    rotary_dims: int
    rope_group: int
    sliding_window: int | None
    turn: Turn | None = None
    angles: tuple[float, ...] = ()
    latent: bool = False

    @property
    def elements_per_token(self) -> int:
        """K and V elements that one token adds to this layer's uncompressed cache."""
        return self.kv_heads * (self.head_dim + self.value_dim)

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads

    @property
    def scored_and_summed(self) -> int:
        """Multiplications of one query head with one token, as keys and values are stored."""
        return self.head_dim + self.value_dim + (self.value_dim if self.latent else 0)


@dataclass(frozen=True)
class ModelGeometry:
    """Geometry of all layers that keep keys and values, and the dtype the model computes in."""

    layers: tuple[LayerGeometry, ...]
    dtype: torch.dtype
    device: torch.device
    dynamic_rope: bool
    """Whether the rotation of a position depends on the length seen so far (dynamic NTK, LongRoPE)."""
    readers: Mapping[int, int] = field(default_factory=dict, hash=False)
    """Layers that keep no keys and values but read those of an earlier one (Gemma 3n, Gemma 4), and which."""

    @property
    def compressible(self) -> tuple[LayerGeometry, ...]:
        """The full-attention layers; sliding-window layers stay exact."""
        return tuple(layer for layer in self.layers if layer.sliding_window is None)

    def elements(self, tokens: int) -> int:
        """K and V elements of one row of ``tokens`` over all layers; twice this is the 16-bit reference in bytes.

        A sliding-window layer counts no more tokens than it has to keep.
        """
        return sum(layer.elements_per_token * min(tokens, layer.sliding_window or tokens) for layer in self.layers)


class _Probe:
    """Records shapes and NaNs of the keys that reach attention, and answers zeros so that no NaN travels on."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[AttentionCall, int, Rotation | None]] = {}
        self.readers: dict[int, int] = {}
        self._groups: dict[int, int] = {}

    def prepare(self, layer: int, cache: Any, rotation: Rotation | None, positions: Tensor | None) -> Takeover:
        group = 0 if rotation is None else self._groups.setdefault(id(rotation[0]), len(self._groups))
        nan = None if rotation is None else tuple(torch.full_like(part, float("nan")) for part in rotation)
        return Takeover(_Recorder(self, layer, group, rotation), replace_rotation=nan)  # type: ignore[arg-type]

    def source_of(self, keys: Tensor) -> int | None:
        """The earlier layer that handed on ``keys``; None if they are new."""
        return next((layer for layer, (call, *_) in self.seen.items() if call.keys is keys), None)


@dataclass
class _Recorder:
    probe: _Probe
    layer: int
    group: int
    rotation: Rotation | None

    def attend(self, call: AttentionCall) -> Tensor:
        if self.layer in self.probe.seen:
            raise UnsupportedModelError(
                f"layer {self.layer} attends several times in one forward pass, which a cache that keeps tokens once "
                "does not follow",
                "layers attend several times in one pass",
            )
        source = self.probe.source_of(call.keys)
        if source is None:
            self.probe.seen[self.layer] = (call, self.group, self.rotation)
        else:
            self.probe.readers[self.layer] = source
        return call.absorbed().finished(call.query.new_zeros(*call.query.shape[:3], call.values.shape[-1]))


@torch.no_grad()
def probe_geometry(model: PreTrainedModel) -> ModelGeometry:
    """Measure the geometry of ``model`` with one forward pass over two tokens.

    Raises:
        UnsupportedModelError: the family has no attention interface, cannot run on token ids alone, attends in a way
            that is not known here, or RoPE rotates dimensions that are not the first.
    """
    probe = _Probe()
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    with Interception(model, probe), refused_where_it_fails(model, "token ids alone"):
        output = model(ids, use_cache=False)
    if not hasattr(output, "logits"):
        raise UnsupportedModelError(
            f"{type(model).__name__} gives no logits: it has no language-model head; load it by AutoModelForCausalLM",
            "no language-model head",
        )
    stock = DynamicCache(config=model.config).layers
    layers = tuple(_layer(index, *probe.seen[index], stock) for index in sorted(probe.seen))
    if not layers:
        raise UnsupportedModelError(
            f"{type(model).__name__}: no attention layer ran through the attention interface",
            "no attention layer calls the attention interface",
        )
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    dynamic = any(_is_dynamic(each) for each in (rope, *rope.values()) if isinstance(each, dict))
    return ModelGeometry(layers, model.dtype, model.device, dynamic, probe.readers)


@contextmanager
def refused_where_it_fails(model: PreTrainedModel, what: str) -> Iterator[None]:
    """Model code that fails within refuses the model in one line; it was written for another ``what``.

    Raises:
        UnsupportedModelError: it failed, other than for want of memory.
    """
    try:
        yield
    except (KvbenchError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot carry a compressed cache, since its code does not take {what}: "
            f"{type(error).__name__}: {reason}",
            f"its code does not take {what}",
        ) from error


def _is_dynamic(rope: dict[str, Any]) -> bool:
    """Whether one entry of ``rope_parameters`` turns a position otherwise in a longer text.

    LongRoPE does where it has other factors for those; with one list it is a table like any other.
    """
    kind = rope.get("rope_type")
    return kind == "dynamic" or (kind == "longrope" and rope.get("short_factor") != rope.get("long_factor"))


def _layer(index: int, call: AttentionCall, group: int, rotation: Rotation | None, stock: list[Any]) -> LayerGeometry:
    rotary = call.keys[0].isnan().any(0).any(0)
    rotary_dims = int(rotary.sum())
    if not bool(rotary[:rotary_dims].all()):
        raise UnsupportedModelError(
            f"layer {index}: RoPE rotates key dimensions that are not the leading ones; this family is not supported",
            "RoPE rotates other key dimensions than the leading ones",
        )
    window = getattr(stock[index], "sliding_window", None) if index < len(stock) else None
    turn = measured_turn(rotation_of(call.module), rotary_dims) if rotary_dims else None
    return LayerGeometry(
        layer=index,
        heads=call.query.shape[1],
        kv_heads=call.keys.shape[1],
        head_dim=call.keys.shape[-1],
        value_dim=call.values.shape[-1],
        rotary_dims=rotary_dims,
        rope_group=group,
        sliding_window=window,
        turn=turn,
        angles=() if rotation is None else _angles(rotation, rotary_dims),
        latent=call.form is not None,
    )


def _angles(rotation: Rotation, rotary_dims: int) -> tuple[float, ...]:
    """How far RoPE turns from one position to the next, by the rotation of position 1; empty if of another width."""
    cos, sin = (part[0, 1].double().cpu() for part in rotation)
    return tuple(torch.atan2(sin, cos).tolist()) if len(cos) == rotary_dims else ()
