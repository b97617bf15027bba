"""The cheapest setting of a method that stays within a measured divergence.

Every step is a real measurement, so steps are few: log KLD is close to linear in the number of bits and in the rank,
and the line through both bounds of the bracket aims well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from kvbench.compressors.compressor import Compressor
from kvbench.compressors.open_method import OpenMethod
from kvbench.errors import KvbenchError

CLOSE = 0.05
"""A KLD this share below the target is as good as on it."""
_STEPS = 6
_LEAST = 1 / 64
_NARROW = 1 / 256
"""Shares of the knob's range: its lowest setting, and a bracket too narrow for another measurement."""


@dataclass
class Search:
    """``method`` with an open knob, and ``measure``, which gives a compressor's KLD.

    Raises:
        KvbenchError: nothing in the method is left open.
    """

    method: str
    measure: Callable[[Compressor], float]
    _klds: dict[float, float] = field(default_factory=dict)
    _refused: KvbenchError | None = None

    def __post_init__(self) -> None:
        self.open = OpenMethod.of(self.method)
        if self.open.knob is None:
            raise KvbenchError(
                f"{self.method} leaves nothing to search; leave out its bits, rank or budget (kvtc, pca+int:bits=4)"
            )
        self.choices, self.highest = self.open.choices, self.open.highest

    def solve(self, target: float) -> Compressor:
        """The cheapest setting found whose measured KLD is at most ``target`` nats per token.

        Raises:
            KvbenchError: no setting reaches it; the message says the nearest.
        """
        if self.choices:
            self._walk_choices(target)
        else:
            self._walk_numbers(target)
        reached = [value for value, kld in self._klds.items() if kld <= target]
        if reached:
            return self._make(min(reached))
        if self._refused is not None and not any(map(math.isfinite, self._klds.values())):
            raise self._refused
        nearest = min(self._klds, key=lambda value: self._klds[value])
        raise KvbenchError(
            f"{self.method} does not get down to a KLD of {target:g}; the nearest is {self._klds[nearest]:.2g} with "
            f"{self._make(nearest)}"
        )

    def _walk_choices(self, target: float) -> None:
        low, high = 0, len(self.choices) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._kld(self.choices[middle]) <= target else (middle + 1, high)
        self._kld(self.choices[low])

    def _walk_numbers(self, target: float) -> None:
        low, high = self._bracket(target)
        for _ in range(_STEPS):
            at = self._kld(high)
            if at >= (1 - CLOSE) * target or at > target or high - low <= _NARROW * self.highest:
                return
            middle = round(low + (high - low) * self._share(low, high, (1 - CLOSE / 2) * target), 4)
            low, high = (low, middle) if self._kld(middle) <= target else (middle, high)

    def _bracket(self, target: float) -> tuple[float, float]:
        """A setting beyond the target (0: none was found) and one within it, or twice the highest if none is."""
        value = self.highest / 2
        if self._kld(value) > target:
            return (value, self.highest) if self._kld(self.highest) <= target else (self.highest, self.highest)
        while value > _LEAST * self.highest:
            if self._kld(value / 2) > target:
                return value / 2, value
            value /= 2
        return value, value

    def _share(self, low: float, high: float, target: float) -> float:
        """Where log KLD meets the target between ``low`` (0) and ``high`` (1)."""
        logs = [math.log(max(self._kld(value), 1e-12)) for value in (low, high)]
        if not math.isfinite(logs[0]) or logs[0] <= logs[1]:
            return 0.5
        return min(max((logs[0] - math.log(target)) / (logs[0] - logs[1]), 0.1), 0.9)

    def _make(self, value: float) -> Compressor:
        return self.open.at(value)

    def _kld(self, value: float) -> float:
        """Measured KLD; infinite where the method refuses the setting."""
        if value not in self._klds:
            try:
                self._klds[value] = self.measure(self._make(value))
            except KvbenchError as error:
                self._klds[value], self._refused = math.inf, error
        return self._klds[value]
