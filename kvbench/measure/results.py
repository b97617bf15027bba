"""What results of several parts are made of: intervals of 95 % and bytes.

All results are immutable and validated; sizes are bytes, times seconds, sequences tuples. A field that a later version
adds has a default, so that older records can be read.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt, model_validator

from kvbench.storage.frozen import Frozen

if TYPE_CHECKING:
    from kvbench.cache.cache import CacheBytes


class Interval(Frozen):
    """A 95 % confidence interval."""

    low: float
    high: float

    @classmethod
    def of(cls, bounds: tuple[float, float] | None) -> Interval | None:
        """From (low, high); None where there is no interval."""
        return None if bounds is None else cls(low=bounds[0], high=bounds[1])

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if self.low > self.high:
            raise ValueError(f"interval is upside down: low {self.low} above high {self.high}")
        return self


class Bytes(Frozen):
    """A cache's allocated bytes by what they hold."""

    payload: NonNegativeInt = 0
    scales: NonNegativeInt = 0
    exact: NonNegativeInt = 0
    positions: NonNegativeInt = 0
    slack: NonNegativeInt = 0
    workspace: NonNegativeInt = 0

    @classmethod
    def of(cls, sizes: CacheBytes) -> Bytes:
        """What a walk over a cache has found."""
        return cls(**asdict(sizes))

    @property
    def total(self) -> int:
        """All kinds together."""
        return self.payload + self.scales + self.exact + self.positions + self.slack + self.workspace
