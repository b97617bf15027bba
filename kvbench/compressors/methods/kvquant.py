"""``kvquant``: keys per channel before RoPE, non-uniform key codes, exact outliers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvbench.codecs.quantizers.lloyd import gaussian_levels
from kvbench.codecs.quantizers.nonuniform import Channels, NonUniformQuantizer
from kvbench.codecs.quantizers.outliers import Outliers
from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.methods.integer import BITS
from kvbench.compressors.part import Part
from kvbench.compressors.rules import Bounds, OneOf


@dataclass(frozen=True)
class KvQuant(Part):
    """KVQuant: keys before RoPE scaled per channel from calibration, values per token, and dense-and-sparse outliers.

    Based on Hooper et al. 2024, KVQuant (arXiv 2401.18079). Stored: ``bits`` per value; the ``outliers`` share of each
    32 tokens of a head exactly in fp16 with 16-bit places (32 bits each: 1 % is 0.32 bits per value); for values middle
    and width of the range in fp16 per token over all heads. Differences: no sensitivity-weighted k-means on calibration
    data; key levels are Lloyd–Max for a normal density of the channel's mean and deviation (the outliers take the heavy
    tails), value levels are uniform over the token's range (any table that shrinks extremes shrinks the same channels
    of every token, and on SmolLM2 costs four times the divergence); outliers are a fixed count per block of a head, not
    a calibrated threshold per channel or a share of each token.
    """

    name = "kvquant"
    family = "quantization"
    roles = ("transform", "quantizer")
    paper = "arXiv 2401.18079"
    needs_calibration = True
    rules = (OneOf("bits", BITS), Bounds("outliers", 0, 0.5, unit=", a fraction"))

    bits: int
    outliers: float = 0.01

    def apply(self, draft: Draft) -> None:
        """Static scales for keys, scales per token for values."""
        draft.store_keys_before_rope()
        device, outliers = draft.geometry.device, Outliers(self.outliers)
        normal = gaussian_levels()[self.bits][0].to(device)
        uniform = torch.linspace(-1, 1, 2**self.bits, device=device)
        for layer in draft:
            layer.keys.quantizer = NonUniformQuantizer(self.bits, normal, outliers, _channels(layer, device))
            layer.values.quantizer = NonUniformQuantizer(self.bits, uniform, outliers)


def _channels(layer: LayerDraft, device: torch.device) -> Channels:
    """Mean and deviation of every key channel."""
    statistics, shape = layer.calibrated, (layer.geometry.kv_heads, 1, layer.geometry.head_dim)
    deviation = statistics.covariance(layer.keys.moment).diagonal().clamp_min(0).sqrt().clamp_min(1e-6)
    mean = statistics.mean(layer.keys.moment)
    return Channels(*(tensor.to(device, torch.float32).reshape(shape) for tensor in (mean, deviation)))
