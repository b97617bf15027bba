"""The bases of a plan as parameters: encoder, decoder and mean of every side that has a transform.

Encoder and decoder are trained apart, also where they began as each other's transpose: a basis that was kept once takes
twice its bytes afterwards. A mean of zero stays zero, which kernels need not add.

Ranks are nested (Matryoshka, arXiv 2410.14731): the first components of every side make the plan of a smaller rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from kvbench.cache.attach import Plan
from kvbench.codecs.codec import SideCodec
from kvbench.codecs.quantizers.base import Divisible, Passthrough, Quantizer
from kvbench.codecs.transforms.linear import LinearTransform
from kvbench.healing.scales import Scale
from kvbench.healing.sides import healed_sides, with_sides
from kvbench.healing.straight_through import StraightThrough


@dataclass
class Bases:
    """The bases of ``plan``, which :func:`kvbench.healing.healable.require_healable` lets pass.

    ``parameters`` are what is added to them, zero at first, in the units of ``scales`` (by layer and side) or, where
    there is none, in the bases' own numbers. They have names such as ``3.values.encoder``, the shapes of
    :class:`LinearTransform`, and the dtype that it computes in.
    """

    plan: Plan
    scales: Mapping[str, Scale] = field(default_factory=dict)
    parameters: dict[str, nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = {
            f"{name}.{part}": nn.Parameter(torch.zeros(tensor.shape, dtype=transform.dtype, device=tensor.device))
            for name, transform in _transforms(self.plan)
            for part, tensor in _parts(transform).items()
        }

    def trained(self, share: float = 1.0) -> Plan:
        """The plan with ``share`` (0…1] of every rank, of the parameters themselves: gradients flow to them."""
        return self._plan(share, lambda side, before: replace(side, quantizer=_passing(side.quantizer)))

    def kept(self, share: float = 1.0) -> Plan:
        """The same as it is saved: bases in the dtype that they came in, without gradients."""
        return self._plan(share, _rounded)

    def _plan(self, share: float, finished: Callable[[SideCodec, SideCodec], SideCodec]) -> Plan:
        layers = {}
        for index, layer in self.plan.layers.items():
            if layer.codec is not None:
                sides = {
                    name: finished(self._side(f"{index}.{name}", side, share), side)
                    for name, side in healed_sides(layer.codec).items()
                }
                layer = replace(layer, codec=with_sides(layer.codec, sides))
            layers[index] = layer
        return Plan(layers, self.plan.spans)

    def _side(self, name: str, side: SideCodec, share: float) -> SideCodec:
        """The first components of ``side``, in parameters."""
        assert side.transform is not None
        rank = max(1, round(share * side.rank))
        encoder, decoder, mean = (
            self._changed(name, part, tensor)
            for part, tensor in zip(("encoder", "decoder", "mean"), side.transform.tensors(), strict=True)
        )
        transform = LinearTransform(encoder[..., :rank], decoder[:, :rank], mean)
        return replace(side, transform=transform, quantizer=_first(side.quantizer, rank, side.rank))

    def _changed(self, name: str, part: str, tensor: Tensor) -> Tensor:
        """A ``part`` of a basis with what was learnt; means of zero stay as they are."""
        change = self.parameters.get(f"{name}.{part}")
        if change is None:
            return tensor
        scale = self.scales.get(name)
        return tensor + (change if scale is None else scale.added(part, change))


def _transforms(plan: Plan) -> Iterator[tuple[str, LinearTransform]]:
    for index, layer in plan.layers.items():
        for name, side in healed_sides(layer.codec).items() if layer.codec is not None else ():
            assert side.transform is not None
            yield f"{index}.{name}", side.transform


def _parts(transform: LinearTransform) -> dict[str, Tensor]:
    parts = {"encoder": transform.encoder, "decoder": transform.decoder}
    return parts | {"mean": transform.mean} if transform.shifts else parts


def _first(quantizer: Quantizer, rank: int, whole: int) -> Quantizer:
    """``quantizer`` for the first ``rank`` of its ``whole`` components; those that are not divisible take any rank."""
    return quantizer.first(rank) if rank < whole and isinstance(quantizer, Divisible) else quantizer


def _passing(quantizer: Quantizer) -> Quantizer:
    """``quantizer`` with gradients."""
    return quantizer if isinstance(quantizer, Passthrough) else StraightThrough(quantizer)


def _rounded(side: SideCodec, before: SideCodec) -> SideCodec:
    """``side`` without gradients, in the dtype of the side ``before``.

    Of a whole basis in fp32 that is cut, what is left is kept in fp16, like every other fitted basis; in fp32 where a
    number is beyond a dtype.
    """
    assert side.transform is not None and before.transform is not None
    dtype = before.transform.decoder.dtype
    if dtype == torch.float32 and side.rank < before.rank:
        dtype = torch.float16
    tensors = [tensor.detach() for tensor in side.transform.tensors()]
    if max(float(tensor.abs().max()) for tensor in tensors) > torch.finfo(dtype).max:
        dtype = torch.float32
    encoder, decoder, mean = (tensor.to(dtype).clone(memory_format=torch.contiguous_format) for tensor in tensors)
    return replace(side, transform=LinearTransform(encoder, decoder, mean))
