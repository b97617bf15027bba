"""What fits: the largest batch at a length, and the longest context of a batch."""

from __future__ import annotations

from kvbench.projection.caches import CacheCost
from kvbench.projection.step_time import Setting


def room(setting: Setting, cost: CacheCost, usable: float = 1.0) -> float:
    """Bytes that weights and bases leave for caches on one device, of the share ``usable`` of its memory.

    Activations are not counted; below 0 the model itself does not fit.
    """
    return usable * setting.device.memory - setting.weight_bytes - cost.basis_bytes


def largest_batch(setting: Setting, cost: CacheCost, tokens: int, usable: float = 1.0) -> int:
    """Rows of ``tokens`` over all devices whose caches fit; 0 where not one does."""
    left = room(setting, cost, usable)
    one, two = cost.size(tokens, 1), cost.size(tokens, 2)
    shared = 2 * one - two  # what all rows use together
    rows = int((left - shared) // (one - shared)) if left > shared else 0
    while rows > 0 and cost.size(tokens, rows) > left:  # sizes are rounded to bytes
        rows -= 1
    return rows * setting.parallel.groups


def longest_context(setting: Setting, cost: CacheCost, batch: int, usable: float = 1.0) -> int:
    """Tokens of each of ``batch`` rows that fit, up to the model's context; 0 where not one does."""
    left, rows = room(setting, cost, usable), setting.parallel.rows(batch)
    low, high = 0, setting.shape.context
    if cost.size(high, rows) <= left:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost.size(middle, rows) <= left else (low, middle)
    return low
