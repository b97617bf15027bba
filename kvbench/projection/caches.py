"""What a cache costs on one device: bytes by length, and the arithmetic of attending to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kvbench.errors import KvbenchError
from kvbench.projection.shape import Shape

NATIVE = "mla"
"""The latent that a model with multi-head latent attention was trained with, and absorbed attention to it."""


class CacheCost(Protocol):
    """The cache of one compressor on one device, which has its share of the heads."""

    @property
    def stored(self) -> str:
        """What is stored, in words."""

    @property
    def basis_bytes(self) -> int:
        """Bytes of bases and codebooks, held once for all caches."""

    @property
    def basis_read(self) -> int:
        """Bytes of them that each step reads."""

    def size(self, tokens: int, rows: int) -> int:
        """Bytes of ``rows`` sequences of ``tokens``."""

    def operations(self, tokens: int) -> float:
        """Operations of one new token's attention to ``tokens`` in all layers: 2 for a multiply-add."""


@dataclass(frozen=True)
class ExactCache:
    """Nothing is coded: ``elements`` a token and layer, of ``width`` bytes each.

    ``multiplied`` counts channels that a head multiplies per token, for its score and for its sum.
    """

    stored: str
    elements: int
    width: int
    heads: int
    multiplied: int
    windows: tuple[int | None, ...]
    basis_bytes: int = 0
    basis_read: int = 0

    def size(self, tokens: int, rows: int) -> int:
        """Bytes of ``rows`` sequences; a layer with a sliding window keeps no more than that."""
        return rows * self.width * self.elements * self._seen(tokens)

    def operations(self, tokens: int) -> float:
        """2 · heads · channels · tokens."""
        return 2.0 * self.heads * self.multiplied * self._seen(tokens)

    def _seen(self, tokens: int) -> int:
        return sum(min(tokens, window or tokens) for window in self.windows)


def cache_cost(spec: str, shape: Shape, tensor_parallel: int, width: int) -> CacheCost:
    """The cache of compressor ``spec`` on one of ``tensor_parallel`` devices, exact numbers taking ``width`` bytes.

    ``none`` keeps every head's keys and values, decompressed where the model has latent attention; ``mla`` is the
    model's own latent and rotated key, every other spec compresses those two. Without latent attention all act on keys
    and values of heads. Every device compresses its own KV heads; a latent is whole on each.

    Raises:
        KvbenchError: the spec does not parse or fit, or its bytes depend on the model's weights.
    """
    heads, windows = shape.heads // tensor_parallel, shape.windows
    if spec == NATIVE and shape.latent is not None:
        # Scores take the latent and the rotated key, sums the latent: W_UK and W_UV are absorbed into query and output
        # (DeepSeek-V2, arXiv 2405.04434, section 2.1.2).
        latent = shape.latent
        return ExactCache("latent and RoPE key", latent.width, width, heads, latent.width + latent.rank, windows)
    if spec == "none":
        kv_heads = max(1, shape.kv_heads // tensor_parallel)
        both = shape.head_dim + shape.value_dim
        stored = "keys and values of every head" if shape.latent is None else "decompressed keys and values"
        return ExactCache(stored, kv_heads * both, width, heads, both, windows)
    if spec == NATIVE:
        raise KvbenchError(
            f"{shape.name} was not trained with multi-head latent attention; mla:latent=512,rope_dims=64 makes a latent"
        )
    from kvbench.projection.coded import coded_cache  # with it come torch, all methods and kernels

    return coded_cache(spec, shape, tensor_parallel, width)
