"""Numbers as text for tables: no digit that means nothing, decimal points in line."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvbench.measure.results import Interval
from kvbench.measure.statistics import significant

MISSING = "–"
"""Printed where nothing was measured."""

MIB = 1 << 20


def short(value: float, digits: int = 3) -> str:
    """``value`` with this many significant digits, in powers of ten only below 0.0001 or from a million on.

    >>> short(0.016723), short(1234.5), short(0.0000123), short(20.0)
    ('0.0167', '1234', '1.23e-5', '20.0')
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if not -4 <= exponent < 6:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(power)}"
    return f"{value:.{max(digits - 1 - exponent, 0)}f}"


def measured(value: float, interval: Interval | None, digits: int = 3, decimals: int = 9) -> str:
    """``value`` with the digits that half its interval leaves meaningful, at most ``digits`` and ``decimals`` of them.

    >>> measured(35.284, Interval(low=33.9, high=36.7), 4), measured(28.9136, Interval(low=28.9135, high=28.9137), 4)
    ('35.3', '28.91')
    """
    longest = short(value, digits)
    if "e" in longest or not math.isfinite(value):
        return longest
    meaningful = significant(value, _half(interval)) if _half(interval) else longest
    return f"{float(meaningful):.{min(_decimals(longest), _decimals(meaningful), decimals)}f}"


def spread(value: float, interval: Interval | None, digits: int = 3, decimals: int = 9) -> str:
    """The interval to as many decimals as :func:`measured` gives ``value``; empty without one or if it has no width.

    >>> spread(0.0167, Interval(low=0.01512, high=0.01831))
    '[0.0151, 0.0183]'
    """
    if interval is None or interval.low == interval.high:
        return ""
    text = measured(value, interval, digits, decimals)
    if "e" in text or not math.isfinite(value):
        return f"[{short(interval.low)}, {short(interval.high)}]"
    return f"[{interval.low:.{_decimals(text)}f}, {interval.high:.{_decimals(text)}f}]"


def ratio(value: float) -> str:
    """A ratio with two decimals, from ten on with three significant digits.

    >>> ratio(1.058), ratio(0.9), ratio(12.345), ratio(345.6)
    ('1.06', '0.90', '12.3', '346')
    """
    return fixed(value, 2) if abs(value) < 9.995 else short(value)


def ratio_spread(value: float, interval: Interval | None) -> str:
    """The interval of a ratio to as many decimals as :func:`ratio` gives ``value``; empty without one or any width.

    >>> ratio_spread(1.058, Interval(low=0.98, high=1.134))
    '[0.98, 1.13]'
    """
    if interval is None or interval.low == interval.high:
        return ""
    text = ratio(value)
    if "e" in text or not math.isfinite(value):
        return f"[{short(interval.low)}, {short(interval.high)}]"
    return f"[{fixed(interval.low, _decimals(text))}, {fixed(interval.high, _decimals(text))}]"


def fixed(value: float, decimals: int) -> str:
    """``value`` with this many decimals.

    >>> fixed(3.2812, 2)
    '3.28'
    """
    return f"{value:.{decimals}f}" if math.isfinite(value) else str(value)


def mebibytes(count: int) -> str:
    """Bytes in MiB, three significant digits.

    >>> mebibytes(48_234_496)
    '46.0'
    """
    return short(count / MIB)


def in_line(texts: Sequence[str]) -> list[str]:
    """Right-aligned numbers padded so that their decimal points stand in one column; words are left as they are.

    >>> in_line(["0.45", "12.0625", "7", "–"])
    ['0.45  ', '12.0625', '7     ', '–']
    """
    tails = [len(text) - len(text.partition(".")[0]) for text in texts if _is_number(text)]
    widest = max(tails, default=0)
    return [
        text + " " * (widest - len(text) + len(text.partition(".")[0])) if _is_number(text) else text for text in texts
    ]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])


def _half(interval: Interval | None) -> float | None:
    """Half the interval's width; None where there is nothing to go by."""
    if interval is None:
        return None
    half = (interval.high - interval.low) / 2
    return half if half > 0 and math.isfinite(half) else None
