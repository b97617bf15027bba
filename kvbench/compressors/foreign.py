"""Parts of other packages: whatever they do wrong is one line that names them, told before any model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from kvbench.cache.attach import LayerPlan
from kvbench.codecs.codec import Codec
from kvbench.compressors.part import Part
from kvbench.errors import KvbenchError, PluginError
from kvbench.hooks.geometry import LayerGeometry, ModelGeometry


@contextmanager
def blaming(cls: type[Part], what: str) -> Iterator[None]:
    """Errors inside become a :class:`PluginError` that names ``cls``, if it comes from another package."""
    try:
        yield
    except (KvbenchError, MemoryError, TimeoutError):  # runs tell these apart from faults
        raise
    except Exception as error:  # a plug-in may do anything
        if not _is_foreign(cls):
            raise
        reason = " ".join(str(error).split())
        raise PluginError(f"compressor plug-in {cls.name!r} {what}: {type(error).__name__}: {reason}") from error


def check_codecs(parts: Sequence[Part], geometry: ModelGeometry, layers: Mapping[int, LayerPlan]) -> None:
    """Send one block of zeros through every layer's codec if a part of another package is in it.

    Raises:
        PluginError: encoding or decoding raises, or gives back other shapes.
    """
    foreign = [type(part) for part in parts if _is_foreign(type(part))]
    if not foreign:
        return
    for layer in geometry.compressible:
        codec = layers[layer.layer].codec
        if codec is not None and type(codec).fit is Codec.fit:  # others need more than one layer's states
            with blaming(foreign[0], f"fails on a block of zeros at layer {layer.layer}"):
                _check(foreign[0], layer, codec, geometry)


def _is_foreign(cls: type[Part]) -> bool:
    return cls.__module__.partition(".")[0] != "kvbench"


def _check(cls: type[Part], layer: LayerGeometry, codec: Codec, geometry: ModelGeometry) -> None:
    shapes = [(1, layer.kv_heads, codec.block, width) for width in (layer.head_dim, layer.value_dim)]
    zeros = [torch.zeros(shape, dtype=geometry.dtype, device=geometry.device) for shape in shapes]
    bound = codec.bound(codec.fit(*zeros))
    for side, decoded, expected in zip(("keys", "values"), bound.decode(bound.encode(*zeros)), shapes, strict=True):
        if not isinstance(decoded, Tensor) or tuple(decoded.shape) != expected:
            got = tuple(decoded.shape) if isinstance(decoded, Tensor) else type(decoded).__name__
            raise PluginError(
                f"compressor plug-in {cls.name!r}: {side} of layer {layer.layer} come back as {got} and not as "
                f"{expected} (batch, kv heads, tokens, width)"
            )
