"""Which plans can be healed: all whose bases are the model's own linear maps, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

from kvbench.cache.attach import Plan
from kvbench.codecs.codec import Codec, SideCodec
from kvbench.codecs.joint import DecoupledCodec, JointCodec
from kvbench.codecs.quantizers.base import Divisible
from kvbench.codecs.quantizers.floating import FloatQuantizer
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.errors import KvbenchError, UnsupportedModelError
from kvbench.healing.sides import healed_sides
from kvbench.hooks.geometry import ModelGeometry

CODECS = (Codec, JointCodec, DecoupledCodec)
"""Those that a whole sequence can be sent through, one layer at a time."""
OF_ANY_RANK = (IntegerQuantizer, FloatQuantizer)
"""Quantizers that know nothing of the components."""


def require_healable(spec: str, plan: Plan, geometry: ModelGeometry, nested: bool = False) -> None:
    """Refuse a plan without bases to train, or whose bases are not all that there is to its compression.

    ``nested``: its ranks are to be cut.

    Raises:
        KvbenchError: with the reason in one line.
        UnsupportedModelError: layers of the model read each other's keys.
    """
    if geometry.readers:
        layer, source = next(iter(geometry.readers.items()))
        raise UnsupportedModelError(
            f"layer {layer} reads the keys and values of layer {source}, and healing trains every layer by itself"
        )
    if any(layer.selector is not None for layer in plan.layers.values()):
        raise KvbenchError(f"{spec} drops tokens, which no basis brings back; heal a transform alone (pca:rank=0.5)")
    healed = [side for codec in _codecs(plan) for side in healed_sides(codec).values()]
    sides = [side for codec in _codecs(plan) for side in codec.sides.values()]
    for refused, reason in (
        (any(side.online is not None for side in sides), "fits its bases to every prompt anew: none are the model's"),
        (any(type(codec) not in CODECS for codec in _codecs(plan)), "stores layers together, or by a codec of its own"),
        (any(side.leading for side in sides), "predicts components from each other"),
        (any(codec.bands is not None for codec in _codecs(plan)), "stores keys in bands; give frame=before"),
        (not healed, "has no bases; heal a transform, such as pca:rank=0.5"),
        (nested and not all(_divides(side) for side in healed), "has a quantizer made for its rank; leave out --ranks"),
    ):
        if refused:
            raise KvbenchError(f"{spec} cannot be healed: it {reason}")


def _codecs(plan: Plan) -> Iterator[Codec]:
    for layer in plan.layers.values():
        if layer.codec is not None:
            yield layer.codec


def _divides(side: SideCodec) -> bool:
    return isinstance(side.quantizer, (Divisible, *OF_ANY_RANK))
