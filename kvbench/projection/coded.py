"""Caches of compressors, fitted to random statistics and sized by the prediction that real caches are held to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch

from kvbench.cache.attach import Plan
from kvbench.cache.prediction import predict_bytes, split
from kvbench.cache.way import Way
from kvbench.cache.work import bases_read, over_body, over_heads
from kvbench.calibration.statistics import Statistics
from kvbench.codecs.codec import Codec
from kvbench.compressors.compressor import Compressor, parse
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import LayerGeometry, ModelGeometry
from kvbench.projection.geometry import device_geometry
from kvbench.projection.random_statistics import random_statistics
from kvbench.projection.shape import Shape

SPECTRA = ((0.6, 1.4), (0.6, 0.6))
"""Decays of the spectra of two layers: methods are fitted to layers that are unlike, and to layers that are alike.

Those that are alike are what is projected. They decay so slowly that few components are dropped.
"""
LENGTH = 8192
"""Tokens at which both fits must agree in size, up to ``TOLERANCE``."""
TOLERANCE = 0.01

_DTYPES = {2: torch.bfloat16, 4: torch.float32}


@dataclass(frozen=True)
class CodedCache:
    """``copies`` layers share what was fitted once for all of them in ``plan``, and really have bases of their own."""

    stored: str
    plan: Plan
    geometry: ModelGeometry
    copies: float

    @property
    def basis_bytes(self) -> int:
        """Bytes of bases and codebooks of all layers; at the most where a method drops components, see SPECTRA."""
        return round(self.copies * self.plan.model_level_bytes())

    @property
    def basis_read(self) -> int:
        """Bytes of decoders that each step reads."""
        codecs = [layer.codec for layer in self.plan.layers.values() if layer.codec is not None]
        return round(self.copies * bases_read(codecs))

    def size(self, tokens: int, rows: int) -> int:
        """Bytes as :func:`predict_bytes` says, exact spans included."""
        return predict_bytes(self.plan, self.geometry, tokens, rows)

    def operations(self, tokens: int) -> float:
        """Attention to exact tokens and to the body, and what rebuilding takes; unpacking codes is not counted."""
        return 2.0 * sum(self._multiplications(layer, tokens) for layer in self.geometry.layers)

    def _multiplications(self, layer: LayerGeometry, tokens: int) -> int:
        if layer.sliding_window is not None:
            return over_heads(layer, min(tokens, layer.sliding_window))
        layer_plan = self.plan.layers.get(layer.layer)
        exact, entries = split(layer_plan, self.plan.spans, tokens)
        codec = None if layer_plan is None else layer_plan.codec
        body = 0 if codec is None else over_body(codec, layer, best_way(codec, layer), entries)
        return over_heads(layer, exact) + body


def coded_cache(spec: str, shape: Shape, tensor_parallel: int, width: int) -> CodedCache:
    """The cache of ``spec`` on one device; see :func:`kvbench.projection.caches.cache_cost`.

    Raises:
        KvbenchError: the spec does not parse or fit, or how many bytes it takes depends on the weights.
    """
    compressor = parse(spec)
    if compressor.stock is not None or compressor.saved is not None:
        raise KvbenchError(f"{spec}: only what kvbench fits by itself can be projected; measure it with kvbench run")
    if shape.latent is not None and (compressor.baseline or any(part.name == "mla" for part in compressor.parts)):
        raise KvbenchError(
            f"{spec}: {shape.name} has a latent of its own; use mla, none, or what compresses the latent"
        )
    geometry = _geometry(shape, tensor_parallel, width)
    plan, copies = _fitted(compressor, shape, geometry)
    stored = "keys and values of every head, coded" if shape.latent is None else "latent and RoPE key, coded"
    return CodedCache(stored, plan, geometry, copies)


def best_way(codec: Codec, layer: LayerGeometry) -> Way:
    """How the best kernel that ``codec`` allows would read it, whatever kernels this machine has."""
    if not codec.rebuildable:
        return Way(None, "decoded")
    if (codec.rotates and layer.rotary_dims > 0) or not codec.absorbable:
        return Way(None, "rebuilt" if codec.bands is None else "bands")
    return Way(None, "latents")


def _fitted(compressor: Compressor, shape: Shape, geometry: ModelGeometry) -> tuple[Plan, float]:
    """A plan for all layers, and how many layers share each of its bases where really each has its own.

    Raises:
        KvbenchError: how many bytes are given out depends on the statistics, or fitting needs more than those.
    """
    if not compressor.needs_calibration or not geometry.compressible:
        return compressor.fit(geometry), 1.0
    two = _two_layers(geometry)
    try:
        unlike, alike = (compressor.fit(two, partial(_statistics, two, shape.hidden, decays)) for decays in SPECTRA)
    except KvbenchError as error:
        raise KvbenchError(f"{compressor} cannot be projected on {shape.name}: {error}") from error
    first, second = (replace(alike, layers={0: alike.layers[place], 1: alike.layers[place]}) for place in (0, 1))
    sizes = [predict_bytes(plan, two, LENGTH) for plan in (unlike, first, second)]
    if max(sizes) > min(sizes) * (1 + TOLERANCE):
        raise KvbenchError(
            f"how many bytes {compressor} gives to a layer depends on the model's statistics, which need its weights; "
            f"with them: kvbench show {compressor} --model FOLDER"
        )
    layers = {layer.layer: alike.layers[place % 2] for place, layer in enumerate(geometry.compressible)}
    return Plan(layers, alike.spans), max(1.0, len(layers) / 2)


def _two_layers(geometry: ModelGeometry) -> ModelGeometry:
    layer = geometry.compressible[0]
    return replace(geometry, layers=(replace(layer, layer=0), replace(layer, layer=1)))


@lru_cache(maxsize=8)
def _geometry(shape: Shape, tensor_parallel: int, width: int) -> ModelGeometry:
    return device_geometry(shape, tensor_parallel, _DTYPES[width])


@lru_cache(maxsize=4)
def _statistics(geometry: ModelGeometry, hidden: int, decays: tuple[float, float]) -> Statistics:
    return random_statistics(geometry, hidden, decays)
