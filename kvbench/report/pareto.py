"""Which points no other point beats: exactly, and with the tolerance that sizes and divergences are known to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SAME_BITS = 0.02
"""Share of its bits by which a point may be off the bits it was solved for: sizes this close are the same size."""


@dataclass(frozen=True)
class Point:
    """A compressor's bits per element and KLD, with the ends of the KLD's interval (both ``kld`` without one)."""

    bits: float
    kld: float
    low: float
    high: float


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point beats, both coordinates the smaller the better, by first coordinate.

    Of equal points all stay; points that are not finite are never on the frontier.
    """
    finite = [index for index, point in enumerate(points) if all(map(math.isfinite, point))]
    order = sorted(finite, key=lambda index: points[index])
    chosen: list[int] = []
    for index in order:
        if not chosen or points[index][1] < points[chosen[-1]][1] or points[index] == points[chosen[-1]]:
            chosen.append(index)
    return chosen


def clear_frontier(points: Sequence[Point]) -> list[int]:
    """Indices of the points of the :func:`frontier` that no other point :func:`clearly_beats`, by bits."""
    return [
        index
        for index in frontier([(point.bits, point.kld) for point in points])
        if not any(clearly_beats(other, points[index]) for other in points)
    ]


def clearly_beats(one: Point, other: Point) -> bool:
    """Whether ``one`` has the bits of ``other``, or fewer, and a KLD that lies below it by more than either interval.

    Bits within 2 % are the same: solving for equal bytes is no closer than that, and a point must not win by them.
    """
    return one.bits <= other.bits * (1 + SAME_BITS) and one.high < other.kld and one.kld < other.low
