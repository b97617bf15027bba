"""Attention by a kernel over decoupled keys: RoPE keys of their own, beside a latent that knows no position.

The decoupled RoPE of DeepSeek-V2 (arXiv 2405.04434, section 2.1.3): a score is ``q_rope · k_rope + q · k(c)``. RoPE
keys are rebuilt from their codes in registers, and rotated if they are stored before RoPE, or floating-point numbers
that are read as they are; queries go into the stored latent once, and sums of it come back once.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvbench.cache.absorb import Prepared, by_group, kernel_basis, of_groups
from kvbench.cache.rebuild import decoder_of, key_rotation
from kvbench.cache.way import Way
from kvbench.codecs.codec import Latents, Rotate
from kvbench.codecs.kernel_view import Coded
from kvbench.hooks.turns import Turn
from kvbench.kernels.rebuilding import RebuiltKeys
from kvbench.kernels.reference import Part


@dataclass(frozen=True)
class Decoupled:
    """Where decoupled keys and values come from; ``keys``, those without a position, and ``values`` from one latent."""

    rope: Latents
    keys: Latents
    values: Latents

    def prepare(self, query: Tensor, tokens: int, turn: Turn | bool, scaling: float, chosen: Way) -> Prepared | None:
        """Attention of queries like ``query`` (batch, heads, 1, width) by a kernel, as long as codes stay in place.

        A query's first components meet RoPE keys, which are rotated by ``turn`` (False: not at all), and the others are
        taken into the latent. None without a kernel.
        """
        kernels, rope, latent = chosen.kernels, chosen.keys, chosen.values
        if kernels is None or rope is None or not isinstance(latent, Coded):
            return None
        bases = [kernel_basis(kernels, side) for side in (self.keys, self.values)]
        if not all(usable for _, usable in bases):
            return None
        turned = turn if isinstance(turn, Turn) else None
        beside = rope if isinstance(rope, Tensor) else RebuiltKeys(rope, *decoder_of(self.rope, rope), turned)
        groups, by = latent.codes.shape[1], str(chosen)
        attention = kernels.prepare(
            by_group(query, groups), latent, latent, tokens, scaling, (bases[0][0], bases[1][0]), beside
        )

        def attend(query: Tensor, mask: Tensor | None, rotate: Rotate | None) -> Part:
            return attention(query, of_groups(mask, groups), key_rotation(rotate, groups), by)

        return attend
