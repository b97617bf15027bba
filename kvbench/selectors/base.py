"""What a selector is: it decides which of the tokens that leave the recent window are kept."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Selector(Protocol):
    """Keeps ``budget`` of the tokens it is shown, per KV head."""

    budget: float

    def scores(self, keys: Tensor, values: Tensor, query: Tensor, scaling: float) -> Tensor:
        """Importance (batch, kv heads, tokens), higher is kept.

        ``keys`` (batch, kv heads, tokens, head_dim) after RoPE, ``values`` alike, ``query`` (batch, heads, new tokens,
        head_dim) after RoPE: the queries of the pass that made the tokens leave.
        """
