"""What the bases of a model meet: states, errors and gradients of a few windows, for the units of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.attach import Plan
from kvbench.codecs.codec import SideCodec
from kvbench.codecs.quantizers.base import Stored
from kvbench.codecs.transforms.linear import LinearTransform, gather_heads
from kvbench.healing.bases import Bases
from kvbench.healing.cached_pass import cached_logits
from kvbench.healing.scales import Scale, Seen
from kvbench.healing.sides import healed_sides, with_sides
from kvbench.healing.teacher import log_probabilities
from kvbench.hooks.geometry import ModelGeometry


@dataclass(frozen=True, eq=False)
class _Watched(SideCodec):
    """A side that notes what it encodes, what its first components (``cut``) lose of it, and what predictions make of
    what it decodes.
    """

    cut: SideCodec | None = None
    seen: Seen = field(default_factory=Seen)

    @property
    def basis(self) -> LinearTransform:
        assert self.transform is not None
        return self.transform

    def encode(self, states: Tensor) -> Stored:
        assert self.cut is not None
        with torch.no_grad():
            lost = states - self.cut.decode(self.cut.encode(states))
            self.seen.add(self.basis.centred(states), gather_heads(lost, self.groups))
        return super().encode(states)

    def decode(self, stored: Stored) -> Tensor:
        decoded = super().decode(stored)
        decoded.register_hook(lambda gradient: self.seen.add_gradient(gather_heads(gradient, self.groups)))
        return decoded


@torch.enable_grad()
def measured_scales(
    model: PreTrainedModel,
    geometry: ModelGeometry,
    plan: Plan,
    windows: Tensor,
    prompt: int,
    scored: int,
    share: float = 1.0,
) -> Mapping[str, Scale]:
    """Units for every transform of ``plan`` that is healed and met a token, by layer and side (``3.values``).

    Measured on ``windows`` (count, tokens), whose first ``prompt`` tokens are prefilled. Tokens are sampled from what
    is predicted after the ``scored`` last: the gradients of their log-probabilities have the Fisher information for
    covariance. What is lost is what the first ``share`` of each rank loses.
    """
    bases = Bases(plan)
    whole, cut = bases.trained(), bases.trained(share)
    layers, watched = dict(whole.layers), dict[str, _Watched]()
    for index, layer in whole.layers.items():
        if layer.codec is not None and (shorter := cut.layers[index].codec) is not None:
            sides = {
                name: _Watched(side.kv_heads, side.head_dim, side.transform, side.quantizer, cut=shorter.sides[name])
                for name, side in healed_sides(layer.codec).items()
            }
            watched |= {f"{index}.{name}": side for name, side in sides.items()}
            layers[index] = replace(layer, codec=with_sides(layer.codec, sides))
    random = torch.Generator(windows.device).manual_seed(0)
    for ids in windows:
        logits = cached_logits(model, geometry, Plan(layers, plan.spans), ids[None], prompt, scored)
        predicted = log_probabilities(logits[0])
        sampled = torch.multinomial(predicted.detach().exp(), 1, generator=random)
        predicted.gather(-1, sampled).sum().backward()
    with torch.no_grad():
        return {name: side.seen.scale(side.basis) for name, side in watched.items() if side.seen.tokens}
