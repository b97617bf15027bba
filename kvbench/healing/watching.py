"""What bases meet in a few windows of text: states, errors and gradients, for the start and the units of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kvbench.cache.attach import Plan
from kvbench.codecs.codec import SideCodec
from kvbench.codecs.quantizers.base import Stored
from kvbench.codecs.transforms.linear import LinearTransform, gather_heads
from kvbench.healing.bases import Bases
from kvbench.healing.reading import Reading
from kvbench.healing.scales import Scale, Seen
from kvbench.healing.sides import healed_sides, wanted_of, with_sides

Watched = Callable[[int, int], None]
"""Called with (windows read, windows in all)."""


@dataclass(frozen=True, eq=False)
class _WatchedSide(SideCodec):
    """A side that notes what it encodes, what its first components (``cut``) lose of it, and what predictions make of
    what it decodes.
    """

    cut: SideCodec | None = None
    wanted: Tensor | None = None
    seen: Seen = field(default_factory=Seen)

    @property
    def basis(self) -> LinearTransform:
        assert self.transform is not None
        return self.transform

    def encode(self, states: Tensor) -> Stored:
        assert self.cut is not None
        with torch.no_grad():
            wanted = gather_heads(states, self.groups)
            if self.wanted is not None:
                wanted = wanted @ self.wanted.to(wanted.dtype)
            lost = wanted - gather_heads(self.cut.decode(self.cut.encode(states)), self.groups)
            self.seen.add(self.basis.centred(states), lost)
        return super().encode(states)

    def decode(self, stored: Stored) -> Tensor:
        decoded = super().decode(stored)
        decoded.register_hook(lambda gradient: self.seen.add_gradient(gather_heads(gradient, self.groups)))
        return decoded


@dataclass(frozen=True)
class Watch:
    """What the healed sides of ``plan`` met, by layer and side (``3.values``); those that met no token are left out."""

    plan: Plan
    seen: Mapping[str, Seen]

    def scales(self) -> Mapping[str, Scale]:
        """Units for every transform."""
        return {name: self.seen[name].scale(_basis(side)) for name, _, side in self._watched()}

    def weighted(self) -> Plan:
        """The plan with the bases of the same ranks that cost predictions least, in closed form."""
        layers = dict(self.plan.layers)
        for name, index, side in self._watched():
            layer = layers[index]
            assert layer.codec is not None
            which = name.partition(".")[2]
            transform = self.seen[name].weighted(_basis(side), wanted_of(layer.codec, which))
            codec = with_sides(layer.codec, {which: replace(side, transform=transform)})
            layers[index] = replace(layer, codec=codec)
        return Plan(layers, self.plan.spans)

    def _watched(self) -> Iterator[tuple[str, int, SideCodec]]:
        for index, layer in self.plan.layers.items():
            for which, side in healed_sides(layer.codec).items() if layer.codec is not None else ():
                if (name := f"{index}.{which}") in self.seen:
                    yield name, index, side


def _basis(side: SideCodec) -> LinearTransform:
    assert side.transform is not None
    return side.transform


@torch.enable_grad()
def watch(
    reading: Reading,
    plan: Plan,
    windows: Tensor,
    share: float = 1.0,
    each_window: Watched = lambda done, total: None,
) -> Watch:
    """Send ``windows`` (count, tokens) through ``plan`` and back.

    Tokens are sampled from what is predicted: the gradients of their log-probabilities have the Fisher information for
    covariance. What is lost is what the first ``share`` of each rank loses.
    """
    bases = Bases(plan)
    whole, cut = bases.trained(), bases.trained(share)
    layers, watched = dict(whole.layers), dict[str, _WatchedSide]()
    for index, layer in whole.layers.items():
        if layer.codec is not None and (shorter := cut.layers[index].codec) is not None:
            sides = {
                name: _WatchedSide(
                    side.kv_heads,
                    side.head_dim,
                    side.transform,
                    side.quantizer,
                    cut=shorter.sides[name],
                    wanted=wanted_of(layer.codec, name),
                )
                for name, side in healed_sides(layer.codec).items()
            }
            watched |= {f"{index}.{name}": side for name, side in sides.items()}
            layers[index] = replace(layer, codec=with_sides(layer.codec, sides))
    random = torch.Generator(windows.device).manual_seed(0)
    for done, ids in enumerate(windows, 1):
        predicted = reading.predicted(Plan(layers, plan.spans), ids)
        sampled = torch.multinomial(predicted.detach().exp(), 1, generator=random)
        predicted.gather(-1, sampled).sum().backward()
        each_window(done, len(windows))
    return Watch(plan, {name: side.seen for name, side in watched.items() if side.seen.tokens})
