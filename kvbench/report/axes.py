"""Axes whose ends and ticks are known in Python, so that labels can be placed where the chart will draw its points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOG_FROM = 6.0
"""An axis is logarithmic where its largest value is at least this many times its smallest."""


@dataclass(frozen=True)
class Axis:
    """A title, the values at both ends and, on a logarithmic axis, where the ticks are."""

    title: str
    low: float
    high: float
    logarithmic: bool
    ticks: tuple[float, ...] = ()

    @classmethod
    def over(
        cls, title: str, values: Iterable[float], logarithmic: bool | None = None, preferred: Sequence[float] = ()
    ) -> Axis:
        """An axis that holds the finite values with some air around them; they must be positive if logarithmic.

        ``preferred`` are the ticks of a logarithmic axis if at least three of them are on it.
        """
        known = [value for value in values if math.isfinite(value)]
        least, most = min(known), max(known)
        if logarithmic is None:
            logarithmic = least > 0 and most / least >= LOG_FROM
        if logarithmic:
            air = max((most / least) ** 0.08, 1.1)
            low, high = least / air, most * air
            inside = tuple(tick for tick in preferred if low <= tick <= high)
            return cls(title, low, high, True, inside if len(inside) >= 3 else log_ticks(low, high))
        air = max(0.08 * (most - least), 0.05 * abs(most), 1e-9)
        return cls(title, least - air, most + air, False)

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Round numbers from ``low`` to ``high``, the fewer in a decade the more decades there are.

    >>> log_ticks(0.8, 25)
    (1.0, 2.0, 5.0, 10.0, 20.0)
    """
    decades = math.log10(high / low)
    steps = (1, 1.5, 2, 3, 4, 6, 8) if decades < 1 else (1, 2, 5) if decades < 2 else (1, 3) if decades < 5 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    stride = max(1, round(decades / 8))
    ticks = (float(f"{step}e{power}") for power in powers if power % stride == 0 for step in steps)
    return tuple(tick for tick in ticks if low <= tick <= high)
