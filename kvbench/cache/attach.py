"""Attaching compressed caches to a model, and leaving no trace on the way out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kvbench.cache.cache import CompressedCache
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.layer import ExactLayer, KVLayer
from kvbench.cache.one_step import CachesOfOneStep, OneStepContext
from kvbench.cache.shared import MemberCodec, SharedLayer
from kvbench.cache.spans import Spans
from kvbench.cache.static_cache import StaticCompressedCache
from kvbench.codecs.codec import Codec
from kvbench.codecs.frame import Frame
from kvbench.errors import UnsupportedModelError
from kvbench.hooks.applied import AppliedRotation
from kvbench.hooks.geometry import LayerGeometry, ModelGeometry
from kvbench.hooks.interception import AttentionCall, Interception, Takeover, attention_modules
from kvbench.hooks.rotary import RotaryTable, Rotator
from kvbench.hooks.rotations import Rotation
from kvbench.kernels.reading import DEFAULT, Reading
from kvbench.selectors.base import Selector


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """What one full-attention layer gets; ``codec`` None keeps it exact."""

    codec: Codec | None
    selector: Selector | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """A fitted compressor: how every full-attention layer is compressed, and the exact spans around it.

    Layers without a plan, and those with a sliding window, stay exact; ``spans`` says in which dtype.
    """

    layers: Mapping[int, LayerPlan]
    spans: Spans = field(default_factory=Spans)

    @property
    def frame(self) -> Frame:
        """The frame that layers store keys in, "after" RoPE where none says otherwise."""
        codecs = [layer.codec for layer in self.layers.values() if layer.codec is not None]
        return next((codec.frame for codec in codecs if codec.frame != "after"), "after")

    @property
    def rotates(self) -> bool:
        """Whether any layer's stored keys are rotated when they are read."""
        return self.frame != "after"

    def compresses(self, layer: int) -> bool:
        """Whether ``layer`` has a codec."""
        plan = self.layers.get(layer)
        return plan is not None and plan.codec is not None

    def model_level_bytes(self) -> int:
        """Bytes of bases, codebooks, static scales and what selectors know, each storage once."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for layer in self.layers.values()
            for part in (layer.codec, layer.selector)
            if part is not None
            for tensor in part.tensors()
        }
        return sum(storages.values())


@dataclass
class _LayerContext:
    """Takes one attention layer over for one forward pass."""

    layer: KVLayer
    rotator: Rotator | None
    applied: AppliedRotation | None

    @torch.compiler.disable
    def attend(self, call: AttentionCall) -> Tensor:
        new = call.query.shape[2]
        if call.form is not None and call.form.attention.absorbs(new, self.layer.seen + new):
            call = call.absorbed()
        return call.finished(self.layer.attend(call, self.rotator, self.applied))


@dataclass
class _ReaderContext:
    """Takes over a layer that reads the tokens of an earlier one, ``layer``, in place of keeping its own."""

    layer: KVLayer

    @torch.compiler.disable
    def attend(self, call: AttentionCall) -> Tensor:
        return call.finished(self.layer.read(call))


class CompressedModel:
    """A model with kvbench's hooks on. Caches come from :meth:`new_cache`; close it to get the stock model back.

    Use it as a context manager. Stock caches, and ``use_cache=False``, still run stock attention meanwhile.
    """

    def __init__(self, model: PreTrainedModel, plan: Plan, geometry: ModelGeometry, reading: Reading = DEFAULT) -> None:
        if plan.rotates and geometry.dynamic_rope:
            raise UnsupportedModelError(
                "this model's RoPE depends on the length seen so far (dynamic NTK or LongRoPE), so stored keys cannot "
                "be rotated again exactly; choose a compressor with keys after RoPE",
                "RoPE depends on the length",
            )
        _require_heads(plan, geometry)
        _require_unread(plan, geometry)
        self.model, self.plan, self.geometry, self.reading = model, plan, geometry, reading
        self._modules = attention_modules(model)
        self._by_layer = {layer.layer: layer for layer in geometry.layers}
        self._tables = {layer.rope_group: RotaryTable() for layer in geometry.layers}
        self._interception = Interception(model, self)

    def __enter__(self) -> CompressedModel:
        self._interception.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        tb: TracebackType | None = None,
    ) -> None:
        self._interception.__exit__()

    def new_cache(self) -> CompressedCache:
        """An empty cache; layers that are not full attention keep what the architecture needs, exactly."""
        stock = DynamicCache(config=self.model.config).layers
        groups: dict[tuple[int, ...], list[SharedLayer]] = {}
        layers = [
            self._new_layer(self._by_layer[index], groups) if index in self._by_layer else stock[index]
            for index in range(max(len(stock), max(self._by_layer) + 1))
        ]
        for layer in layers:
            if isinstance(layer, KVLayer):
                layer.reading = self.reading
        for source in self.geometry.readers.values():
            read = layers[source]
            assert isinstance(read, KVLayer)
            read.readers += 1
        return CompressedCache(layers, self)

    def _new_layer(self, geometry: LayerGeometry, groups: dict[tuple[int, ...], list[SharedLayer]]) -> KVLayer:
        plan = self.plan.layers.get(geometry.layer)
        if geometry.sliding_window is not None or plan is None or plan.codec is None:
            return ExactLayer(geometry.sliding_window, self.plan.spans.exact)
        if isinstance(plan.codec, MemberCodec):
            return SharedLayer(plan.codec, self.plan.spans, groups.setdefault(plan.codec.members, []))
        return CompressedLayer(plan.codec, self.plan.spans, plan.selector)

    @property
    def rope_table_bytes(self) -> int:
        """Bytes of the model-level cos and sin tables, filled where stored keys are rotated when they are read."""
        return sum(table.nbytes for table in self._tables.values())

    def rotations(self, positions: Tensor) -> dict[str, Tensor]:
        """cos and sin of ``positions`` (rows, tokens) by name, of all tables in use: part of a saved cache."""
        tensors: dict[str, Tensor] = {}
        for group, table in self._tables.items():
            if table.cos is not None:
                tensors |= dict(zip((f"rope.{group}.cos", f"rope.{group}.sin"), table.lookup(positions), strict=True))
        return tensors

    def learn_rotations(self, positions: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Take in what :meth:`rotations` gave; errors as in :meth:`RotaryTable.fill`."""
        for group, table in self._tables.items():
            if f"rope.{group}.cos" in tensors:
                table.fill(positions, (tensors[f"rope.{group}.cos"], tensors[f"rope.{group}.sin"]))

    def rotator(self, layer: int, cache: CompressedCache) -> Rotator | None:
        """The rotation of ``layer``'s stored keys in ``cache``; None without RoPE or with keys stored after it."""
        geometry, plan = self._by_layer[layer], self.plan.layers.get(layer)
        if plan is None or plan.codec is None or not plan.codec.rotates or geometry.rotary_dims == 0:
            return None
        return Rotator(self._modules[layer], geometry, self._tables[geometry.rope_group], cache.positions)

    def applied(self, layer: int, rotation: Rotation | None) -> AppliedRotation | None:
        """The ``rotation`` of a pass's tokens where ``layer`` has a selector, which may look at positions to come."""
        geometry, plan = self._by_layer[layer], self.plan.layers.get(layer)
        if rotation is None or plan is None or plan.selector is None or geometry.rotary_dims == 0:
            return None
        return AppliedRotation(self._modules[layer], geometry, rotation)

    def record(
        self, layer: int, cache: CompressedCache, seen: int, rotation: Rotation, positions: Tensor | None
    ) -> None:
        """Note the positions of new tokens, and their rotation in the model-level table.

        Raises:
            UnsupportedModelError: rows have rotations of their own, and the model does not say at which positions.
        """
        if positions is None and rotation[0].shape[0] > 1:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} does not tell its attention layers the positions of a padded batch, so "
                "keys stored before RoPE cannot be rotated again; choose keys after RoPE, or batch size 1",
                "not in padded batches",
            )
        if positions is None:
            positions = torch.arange(seen, seen + rotation[0].shape[1], device=rotation[0].device)[None]
        cache.positions.extend(seen, positions)
        self._tables[self._by_layer[layer].rope_group].fill(positions, rotation)

    def prepare(self, layer: int, cache: Any, rotation: Rotation | None, positions: Tensor | None) -> Takeover | None:
        """Handler of the interception: take over layers of our caches, leave the rest to stock attention."""
        if isinstance(cache, StaticCompressedCache) and cache.owner is self:
            return cache.takeover(layer, rotation)
        if isinstance(cache, CompressedCache | CachesOfOneStep) and cache.owner is self:
            return self._takeover(layer, cache, rotation, positions)
        return None

    @torch.compiler.disable  # kernels take addresses, which no graph can hold
    def _takeover(
        self, layer: int, cache: CompressedCache | CachesOfOneStep, rotation: Rotation | None, positions: Tensor | None
    ) -> Takeover | None:
        if isinstance(cache, CachesOfOneStep):
            return Takeover(self._context_of_step(layer, cache, rotation, positions))
        source = self.geometry.readers.get(layer)
        if source is not None:
            read = cache.layers[source]
            assert isinstance(read, KVLayer)
            return Takeover(_ReaderContext(read))
        kv_layer = cache.layers[layer]
        if not isinstance(kv_layer, KVLayer):
            return None
        rotator = self.rotator(layer, cache)
        if rotator is not None and rotation is not None:
            self.record(layer, cache, kv_layer.seen, rotation, positions)
        kv_layer.expected = True
        return Takeover(_LayerContext(kv_layer, rotator, self.applied(layer, rotation)))

    def _context_of_step(
        self, layer: int, step: CachesOfOneStep, rotation: Rotation | None, positions: Tensor | None
    ) -> OneStepContext:
        """The contexts of one step's caches; the rows of each stand at one position."""
        contexts = []
        for cache, rows in zip(step.caches, step.rows, strict=True):
            row = slice(rows.start, rows.start + 1)
            of_row = rotation
            if rotation is not None and len(rotation[0]) > 1:
                of_row = rotation[0][row], rotation[1][row]
            takeover = self.prepare(layer, cache, of_row, None if positions is None else positions[row])
            assert takeover is not None
            contexts.append(takeover.context)
        return OneStepContext(contexts, step.rows)


def _require_unread(plan: Plan, geometry: ModelGeometry) -> None:
    """Refuse a body of several layers where later layers read one of them: each would have to wait for the other.

    Raises:
        UnsupportedModelError: there is such a body.
    """
    for reader, source in geometry.readers.items():
        chosen = plan.layers.get(source)
        if chosen is not None and isinstance(chosen.codec, MemberCodec):
            raise UnsupportedModelError(
                f"layer {reader} reads the keys and values of layer {source}, which this compressor stores together "
                "with those of other layers; choose one that compresses every layer by itself"
            )


def _require_heads(plan: Plan, geometry: ModelGeometry) -> None:
    """Refuse what needs keys, values or queries of heads where there are latents instead.

    Raises:
        UnsupportedModelError: such a layer has a selector that judges them, or a codec that makes latents of them.
    """
    for layer in geometry.compressible:
        chosen = plan.layers.get(layer.layer)
        if not layer.latent or chosen is None:
            continue
        if chosen.selector is not None and chosen.selector.judges_heads:
            raise UnsupportedModelError(
                f"layer {layer.layer} has multi-head latent attention, which stores no keys of heads that eviction "
                "could judge tokens by; choose eviction without attention (streaming, random) or a codec"
            )
        if chosen.codec is not None and chosen.codec.decoupled:
            raise UnsupportedModelError(
                f"layer {layer.layer} has multi-head latent attention already, so there are no heads to make latents "
                "of; compress its latents (pca, kvtc, int)"
            )
