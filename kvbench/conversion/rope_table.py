"""A RoPE table of any frequencies, as a config can say it.

The slice that keeps its RoPE holds pairs of the original model's frequencies, some more than once and most not at all:
no base gives such a list. LongRoPE (arXiv 2402.13753) divides each frequency by a factor of its own; over base 1 the
factors are all there is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rope_parameters(frequencies: Tensor, attention_factor: float, context: int) -> dict[str, Any]:
    """``frequencies`` (pairs,) in radians a position, fp32, for models of ``context`` tokens.

    ``attention_factor`` multiplies cosines and sines, as YaRN's does.
    """
    factors = wavelengths(frequencies).tolist()
    return {
        "rope_type": "longrope",
        "rope_theta": 1.0,
        "factor": 1.0,
        "short_factor": factors,
        "long_factor": factors,
        "original_max_position_embeddings": context,
        "attention_factor": attention_factor,
    }


def wavelengths(frequencies: Tensor) -> Tensor:
    """fp32 numbers whose reciprocals are ``frequencies`` (fp32), exactly wherever there are such numbers.

    There are for a plain RoPE, whose frequencies are reciprocals; of others one unit in the last place may be lost.
    """
    nearest = frequencies.reciprocal()
    options = torch.stack([nearest, *(nearest.nextafter(torch.full_like(nearest, to)) for to in (0, torch.inf))])
    error = (options.reciprocal().double() - frequencies.double()).abs()
    return options.gather(0, error.argmin(0, keepdim=True))[0]
