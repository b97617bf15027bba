"""A compressor being put together: parts fill in slots, layer by layer, until a plan is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from kvbench.cache.attach import LayerPlan, Plan
from kvbench.cache.spans import Spans
from kvbench.calibration.block_moments import relative_to_block
from kvbench.calibration.statistics import LayerStatistics, Statistics
from kvbench.codecs.codec import Codec, SideCodec
from kvbench.codecs.frame import BLOCK, Bands, Frame, bands_of
from kvbench.codecs.quantizers.base import Passthrough, Quantizer
from kvbench.codecs.transforms.linear import LinearTransform
from kvbench.codecs.transforms.online import PromptBasis
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import LayerGeometry, ModelGeometry
from kvbench.selectors.base import Selector


@dataclass
class SideDraft:
    """Keys or values of one layer so far. ``moment`` names their statistics: key, rotated_key or value.

    ``online`` stands for a transform that every sequence fits for itself. ``joint``: these keys are part of the
    values' latent; apart from it only what their transform gives is stored, as the RoPE part in ``mla``.
    """

    head_dim: int
    moment: str
    transform: LinearTransform | None = None
    quantizer: Quantizer | None = None
    online: PromptBasis | None = None
    joint: bool = False
    leading: int = 0


@dataclass
class LayerDraft:
    """One full-attention layer so far."""

    geometry: LayerGeometry
    statistics: LayerStatistics | None
    keys: SideDraft
    values: SideDraft
    selector: Selector | None = None
    codec: Callable[..., Codec] = Codec
    """Called with both side codecs, whether keys are stored before RoPE, and the bands."""
    bands: Bands | None = None

    @property
    def sides(self) -> tuple[SideDraft, SideDraft]:
        """Keys and values."""
        return self.keys, self.values

    @property
    def calibrated(self) -> LayerStatistics:
        """The layer's statistics.

        Raises:
            KvbenchError: fitted without calibration.
        """
        if self.statistics is None:
            raise KvbenchError(
                f"layer {self.geometry.layer} has no statistics: this compressor needs calibration; "
                "pass calibration=… or run `kvbench calibrate` for this model"
            )
        return self.statistics


@dataclass
class Draft:
    """All full-attention layers so far. ``roles`` remembers which part filled which role."""

    geometry: ModelGeometry
    statistics: Statistics | None
    layers: dict[int, LayerDraft] = field(init=False)
    keys_before_rope: bool = False
    roles: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {} if self.statistics is None else self.statistics.layers
        self.layers = {
            layer.layer: LayerDraft(
                layer,
                known.get(layer.layer),
                SideDraft(layer.head_dim, "rotated_key"),
                SideDraft(layer.value_dim, "value"),
            )
            for layer in self.geometry.compressible
        }

    def __iter__(self) -> Iterator[LayerDraft]:
        return iter(self.layers.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that latents are computed in: fp32, or fp64 for an fp64 model."""
        return torch.promote_types(self.geometry.dtype, torch.float32)

    @property
    def basis_dtype(self) -> torch.dtype:
        """The dtype that bases are kept in: fp16, or fp64 for an fp64 model."""
        return torch.float64 if self.dtype == torch.float64 else torch.float16

    @property
    def calibrated(self) -> Statistics:
        """The statistics. Raises KvbenchError when fitted without calibration."""
        if self.statistics is None:
            raise KvbenchError("this compressor needs calibration; pass calibration=… or run `kvbench calibrate`")
        return self.statistics

    def store_keys(self, frame: Frame, block: int = BLOCK, pairs: int | None = None) -> None:
        """Choose the frame of the keys, and with it their statistics. ``block`` and ``pairs`` are those of the bands.

        Raises:
            KvbenchError: bands need calibration.
            UnsupportedModelError: bands, and it cannot be told which dimensions RoPE turns together.
        """
        if frame == "before":
            self.store_keys_before_rope()
        elif frame == "bands":
            self._store_keys_in_bands(block, pairs)

    def store_keys_before_rope(self) -> None:
        """Keep keys unrotated; their statistics are those before RoPE."""
        self.keys_before_rope = True
        for layer in self:
            layer.keys.moment = "key"

    def _store_keys_in_bands(self, block: int, pairs: int | None) -> None:
        """Keep keys relative to their block, but for fast RoPE pairs; their statistics follow, as "key"."""
        for layer in self:
            layer.bands = bands_of(layer.geometry, block, pairs)
            layer.keys.moment = "key"  # without RoPE, those are the keys
            if layer.bands is not None:
                layer.statistics = relative_to_block(layer.calibrated, layer.geometry, layer.bands)

    def finish(self, spans: Spans) -> Plan:
        """The plan; sides without a quantizer keep their latents in the model's dtype."""
        return Plan({layer.geometry.layer: self._finish_layer(layer) for layer in self}, spans)

    def _finish_layer(self, layer: LayerDraft) -> LayerPlan:
        keys, values = (
            SideCodec(
                layer.geometry.kv_heads,
                side.head_dim,
                side.transform and side.transform.to(self.geometry.device),
                side.quantizer or Passthrough(self.geometry.dtype),
                side.online,
                side.leading,
            )
            for side in layer.sides
        )
        before = self.keys_before_rope and layer.geometry.rotary_dims > 0
        codec = layer.codec(keys, values, before, layer.bands)
        most = None if layer.selector is None else layer.selector.budget.most
        if most is not None and most < codec.block:
            raise KvbenchError(
                f"tokens={most} keeps nothing: what is stored comes in blocks of {codec.block}; keep at least one"
            )
        return LayerPlan(codec, layer.selector)
