"""What calibration knows about a model: second moments per layer, in fp64.

One pass over the calibration text fills these; every compressor, rank and bit width is fitted from them. Attention
sinks are left out: their keys are outliers by orders of magnitude and stay exact anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from kvbench.calibration.across import AcrossLayers, Group
from kvbench.calibration.sensitivity import Sensitivity
from kvbench.errors import KvbenchError


def _absent() -> Tensor:
    return torch.zeros(0, dtype=torch.float64)


@dataclass
class LayerStatistics:
    """Raw sums over ``count`` tokens; K = kv_heads · head_dim, V = kv_heads · value_dim, all fp64 but the weights.

    ``key_*`` are before RoPE, ``rotated_key_*`` after; ``query_second`` and ``rotated_query_second`` are
    (kv_heads, head_dim, head_dim), summed over the query heads of a group; ``query_sum`` (heads, head_dim) and
    ``head_query_second`` (heads, head_dim, head_dim) are of every query head before RoPE. ``fisher_*`` are Σ g gᵀ of
    the gradient of −log p(y), y sampled from the model, with respect to keys before RoPE, keys after RoPE and values:
    zero-sized when no backward pass was made.

    ``key_value_second`` (K, V) is Σ k vᵀ of keys before RoPE; ``input_abs_sum`` (hidden,) is Σ |x| of the layer's
    input. The rest knows the projections: ``key_weight`` (K, hidden), ``key_bias`` (K,) and the same of values are in
    the model's dtype; ``output_gram`` (kv_heads, value_dim, value_dim) is Σ W_oᵀ W_o over the query heads of a group.
    Zero-sized where the layer's keys or values are not linear in its input, as with a norm behind W_k.

    In multi-head latent attention keys are the RoPE keys, queries what meets these, and values the latents, of which
    ``output_gram`` goes through W_UV.
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
    key_value_second: Tensor = field(default_factory=_absent)
    input_abs_sum: Tensor = field(default_factory=_absent)
    key_weight: Tensor = field(default_factory=_absent)
    key_bias: Tensor = field(default_factory=_absent)
    value_weight: Tensor = field(default_factory=_absent)
    value_bias: Tensor = field(default_factory=_absent)
    output_gram: Tensor = field(default_factory=_absent)
    query_sum: Tensor = field(default_factory=_absent)
    head_query_second: Tensor = field(default_factory=_absent)

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

    def measured(self, name: str) -> Tensor:
        """A field that may be missing, ``key_weight``, ``output_gram``, ``key_value_second``, …, in fp64.

        Raises:
            KvbenchError: the model has no such linear projection, or the statistics are of an older kind.
        """
        tensor = getattr(self, name)
        if tensor.numel() == 0:
            raise KvbenchError(
                f"the statistics hold no {name}: this model's projection is not linear (a norm sits behind it) or they "
                "were collected by an older kvbench; calibrate again, or use a compressor that needs no weights (pca)"
            )
        return tensor.double()


@dataclass
class Statistics:
    """Statistics of all full-attention layers by layer index, and what they were collected from.

    ``measure_sensitivity`` and ``measure_across`` run the model, so they wait until a compressor wants to know: see
    :meth:`sensitivity` and :meth:`across`.
    """

    layers: dict[int, LayerStatistics]
    model: str
    weights_sha256: str
    text_sha256: str
    measure_sensitivity: Callable[[], Sensitivity] | None = None
    measure_across: Callable[[tuple[Group, ...]], AcrossLayers] | None = None
    _sensitivity: Sensitivity | None = None

    def sensitivity(self) -> Sensitivity:
        """Measured KLD per layer and side, measured now if it was not yet.

        Raises:
            KvbenchError: these statistics came without a model to measure.
        """
        if self._sensitivity is None:
            if self.measure_sensitivity is None:
                raise KvbenchError(
                    "allocate=sensitivity needs statistics that can run the model; take them from "
                    "kvbench.measure.sensitivity.calibrated(), or name a text as calibration"
                )
            self._sensitivity = self.measure_sensitivity()
        return self._sensitivity

    def across(self, groups: tuple[Group, ...]) -> AcrossLayers:
        """Moments of the layers of every group side by side, collected now.

        Raises:
            KvbenchError: these statistics came without a model to run.
        """
        if self.measure_across is None:
            raise KvbenchError(
                "bases across layers need statistics that can run the model; name a text as calibration, or give "
                "every layer a basis of its own (layers=1)"
            )
        return self.measure_across(groups)

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
