"""What calibration knows about a model: second moments per layer, in fp64.

One pass over the calibration text fills these; every compressor, rank and bit width is fitted from them. Attention
sinks are left out: their keys are outliers by orders of magnitude and stay exact anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class LayerStatistics:
    """Raw sums over ``count`` tokens; K = kv_heads · head_dim, V = kv_heads · value_dim, all fp64.

    ``key_*`` are before RoPE, ``rotated_key_*`` after; ``query_second`` and ``rotated_query_second`` are
    (kv_heads, head_dim, head_dim), summed over the query heads of a group. ``fisher_*`` are Σ g gᵀ of the gradient of
    −log p(y), y sampled from the model, with respect to keys before RoPE, keys after RoPE and values: zero-sized when
    """

    count: Tensor
    key_sum: Tensor
    key_second: Tensor
    rotated_key_sum: Tensor
    rotated_key_second: Tensor
    value_sum: Tensor
    value_second: Tensor
    query_second: Tensor
    rotated_query_second: Tensor
    fisher_key: Tensor
    fisher_rotated_key: Tensor
    fisher_value: Tensor

    @property
    def has_fisher(self) -> bool:
        """Whether the backward pass was made."""
        return self.fisher_value.numel() > 0

    def mean(self, side: str) -> Tensor:
        """Mean (K,) of ``side``: "key", "rotated_key" or "value"."""
        return getattr(self, f"{side}_sum") / self.count

    def second(self, side: str) -> Tensor:
        """Uncentred second moment (K, K) per token."""
        return getattr(self, f"{side}_second") / self.count

    def covariance(self, side: str) -> Tensor:
        """Covariance (K, K)."""
        mean = self.mean(side)
        return self.second(side) - torch.outer(mean, mean)

    def fisher(self, side: str) -> Tensor:
        """Empirical Fisher matrix (K, K) per token."""
        return getattr(self, f"fisher_{side}") / self.count


@dataclass
class Statistics:
    """Statistics of all full-attention layers by layer index, and what they were collected from."""

    layers: dict[int, LayerStatistics]
    model: str
    weights_sha256: str
    text_sha256: str

    def tensors(self) -> dict[str, Tensor]:
        """Flat names for storage: ``<layer>.<field>``."""
        return {
            f"{index}.{item.name}": getattr(layer, item.name)
            for index, layer in self.layers.items()
            for item in fields(LayerStatistics)
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], model: str, weights_sha256: str, text_sha256: str) -> Statistics:
        """The inverse of :meth:`tensors`."""
        grouped: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, _, attribute = name.partition(".")
            grouped.setdefault(int(index), {})[attribute] = tensor
        layers = {index: LayerStatistics(**grouped[index]) for index in sorted(grouped)}
        return cls(layers, model, weights_sha256, text_sha256)
