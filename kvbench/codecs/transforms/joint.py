"""Keys and values of a token side by side, as one vector per KV head.

Both are linear in the same input, so what one says about the other need not be stored twice: a joint basis of keys
*before RoPE* and values reaches the same error with far fewer components than one basis for each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.codecs.transforms.fitting import FLOOR


def side_by_side(keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """(K,) and (V,) → (K + V,) in the order [k₁ | v₁ | k₂ | v₂ …] of the heads."""
    return torch.cat([keys.view(heads, -1), values.view(heads, -1)], 1).flatten()


def joint_matrix(keys: Tensor, values: Tensor, heads: int, cross: Tensor | None = None) -> Tensor:
    """Blocks (K, K), (V, V) and (K, V), if any, of a symmetric matrix in the order of :func:`side_by_side`."""
    cross = keys.new_zeros(len(keys), len(values)) if cross is None else cross
    whole = torch.cat([torch.cat([keys, cross], 1), torch.cat([cross.T, values], 1)])
    order = side_by_side(torch.arange(len(keys)), len(keys) + torch.arange(len(values)), heads)
    return whole[order][:, order]


def balanced(keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """The diagonal metric (K + V, K + V) under which keys and values of moments (K, K), (V, V) have the same energy."""
    ratio = values.trace() / keys.trace().clamp_min(FLOOR * values.trace())
    return side_by_side(ratio.expand(len(keys)), torch.ones(len(values), dtype=keys.dtype), heads).diag()
