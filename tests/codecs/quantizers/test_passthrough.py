"""No quantization is a copy in the cache's dtype."""

from __future__ import annotations

import pytest
import torch

from kvbench.codecs.quantizers.base import Passthrough


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_passthrough_copies(dtype: torch.dtype) -> None:
    quantizer = Passthrough(dtype)
    states = torch.randn(2, 3, 5, 4, dtype=dtype)
    stored = quantizer.encode(states)
    kept = stored["latent"].clone()
    states.zero_()
    assert torch.equal(quantizer.decode(stored), kept)
    assert stored["latent"].dtype == dtype and stored["latent"].is_contiguous()
    assert quantizer.cost(3, 4, torch.float32).payload * 5 * 2 == stored["latent"].nbytes * 8
    assert quantizer.tensors() == []
