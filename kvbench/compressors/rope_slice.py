"""Which part of the keys keeps its RoPE when the rest becomes a latent without.

Keys are mixed across heads within each frequency (RoRoPE of TransMLA, arXiv 2502.07864), which gives every frequency as
many complex components as there are KV heads. Without RoPE, one is scored as if all tokens stood at one position. For
keys and queries of energies E|k|² and E|q|² that are independent, at distances Δ up to ``DISTANCE``, the root mean
square of what that changes in a score is

    √( E|k|² · E|q|² · 2 (1 − mean cos θΔ) ),    mean cos θΔ = sin(θ · DISTANCE) / (θ · DISTANCE),

its *contribution*: the norms of MHA2MLA (arXiv 2502.14837) times how far RoPE turns. Slow frequencies hold most of the
energy and hardly turn, so energy alone keeps RoPE where it does nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvbench.codecs.transforms.fitting import Basis
from kvbench.codecs.transforms.rope import commuting_basis, frequencies_of, frequency_pairs, shared_counts
from kvbench.compressors.draft import LayerDraft
from kvbench.errors import KvbenchError

Choice = Literal["contribution", "shared", "even", "energy"]
DISTANCE = 512
"""Tokens: most of attention looks less far back, whatever the context."""


def rope_bases(layers: list[LayerDraft], choice: Choice, rope_dims: int) -> list[Basis]:
    """A commuting basis (1, K, K) of the keys of each layer, whose first ``rope_dims`` components keep their RoPE.

    By ``contribution`` to scores; ``shared``: the contributions summed over layers say how many components of each
    frequency all layers keep; ``even``: the component of most energy of every frequency, then the second of every one,
    and so on, as TransMLA has it; or by ``energy`` of the keys alone.

    Raises:
        KvbenchError: layers of several shapes share no frequencies.
        UnsupportedModelError: it cannot be told which dimensions RoPE turns together.
    """
    bases = [_commuting(layer) for layer in layers]
    if choice == "energy":
        return [basis for basis, _ in bases]
    components = [_Components.of(layer, *basis) for layer, basis in zip(layers, bases, strict=True)]
    if choice == "even":
        return [basis.reordered(each.in_turns) for (basis, _), each in zip(bases, components, strict=True)]
    counts = None
    if choice == "shared":
        if len({each.by_frequency.shape for each in components}) > 1:
            raise KvbenchError("choice=shared needs layers of one shape; use choice=contribution")
        counts = shared_counts([each.by_frequency for each in components], rope_dims // 2)
    return [basis.reordered(each.order(counts)) for (basis, _), each in zip(bases, components, strict=True)]


def _commuting(layer: LayerDraft) -> tuple[Basis, Tensor]:
    """The commuting basis by energy, and the pairs of its frequencies; dimensions without RoPE come last."""
    geometry, statistics = layer.geometry, layer.calibrated
    before = statistics.second("key")
    pairs = frequency_pairs(before, statistics.second("rotated_key"), geometry.kv_heads, geometry.rotary_dims)
    rotated = (torch.arange(len(before)) % geometry.head_dim < geometry.rotary_dims).double()
    return commuting_basis(before * torch.outer(rotated, rotated), geometry.kv_heads, pairs), pairs


@dataclass(frozen=True, eq=False)
class _Components:
    """The complex components (K / 2,) of a layer's commuting basis; those without RoPE have frequency -1.

    ``by_frequency`` (frequencies, KV heads) are the contributions of all others.
    """

    contribution: Tensor
    frequency: Tensor
    by_frequency: Tensor

    @classmethod
    def of(cls, layer: LayerDraft, basis: Basis, pairs: Tensor) -> _Components:
        heads, axes = layer.geometry.kv_heads, basis.encoder[0]
        per_head = axes.view(heads, -1, axes.shape[1])
        queries = layer.calibrated.query_second / layer.calibrated.count
        met = torch.einsum("gdn,gde,gen->n", per_head, queries, per_head).clamp_min(0)
        frequency = frequencies_of(axes, heads, pairs)
        energies = (side.view(-1, 2).sum(1) for side in (basis.variances, met))
        contribution = (math.prod(energies) * _turned(layer, pairs)[frequency.clamp_min(0)]).sqrt()
        rotated = frequency.argsort(stable=True)[-heads * len(pairs) :]
        return cls(contribution, frequency, contribution[rotated].view(len(pairs), heads))

    def order(self, counts: Tensor | None) -> Tensor:
        """Columns of the basis by falling contribution; with ``counts`` (frequencies,), so many of each come first."""
        order = self.contribution.where(self.frequency >= 0, -1).argsort(descending=True, stable=True)
        if counts is not None:
            frequency = self.frequency[order]
            chosen = (_places(frequency) < counts[frequency.clamp_min(0)]) & (frequency >= 0)
            order = order[(~chosen).int().argsort(stable=True)]
        return _columns(order)

    @property
    def in_turns(self) -> Tensor:
        """Columns of the basis: the first component of every frequency, then the second of every one, and so on."""
        return _columns(_places(self.frequency).where(self.frequency >= 0, len(self.frequency)).argsort(stable=True))


def _places(frequency: Tensor) -> Tensor:
    """How many components before each have its frequency (n,)."""
    return (frequency[:, None] == frequency).tril(-1).sum(1)


def _columns(components: Tensor) -> Tensor:
    """Real and imaginary parts of ``components``, one after the other."""
    return torch.stack([2 * components, 2 * components + 1], 1).flatten()


def _turned(layer: LayerDraft, pairs: Tensor) -> Tensor:
    """1 − mean cos θΔ of every frequency (frequencies,); 1 where the model's rotation is of no usual form."""
    if layer.geometry.turn is None or not layer.geometry.angles:
        return torch.ones(len(pairs), dtype=torch.float64)
    angles = torch.tensor(layer.geometry.angles, dtype=torch.float64)[pairs[:, 0]]
    return 1 - torch.sinc(angles * DISTANCE / math.pi)
