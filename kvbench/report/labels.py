"""Where to put the names of points on a chart so that they cover neither each other nor a point.

Greedy over a few places around each point, in the spirit of the rules for maps (Imhof, "Positioning Names on Maps",
1975): right first, then left, above, below, then farther out, and never nearer to another point than to its own.
Pixels, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Align = Literal["left", "center", "right"]

CHARACTER = 6.0
"""Width of a character at the charts' font size, rather too large than too small."""

LINE = 13.0
MARK = 6.0
"""Half the side of the square that a point keeps free."""

LARGEST_SHARE = 0.08
"""Of its own area, that a name may cost and still be placed there."""

RANK = 4.0
"""Cost, in covered pixels, of each step down the list of places."""

STRAY = 150.0
"""Cost, in covered pixels, of standing as near to another point as to one's own."""


APART = 3.0
"""Pixels by which a name must be nearer to its own point than to any other."""


@dataclass(frozen=True)
class Box:
    """A rectangle; ``bottom`` is below ``top``, so larger."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.bottom - self.top)

    def overlap(self, other: Box) -> float:
        """Area of the intersection."""
        if self.left >= other.right or other.left >= self.right:  # most pairs are far apart
            return 0.0
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * max(height, 0.0)

    def distance(self, x: float, y: float) -> float:
        """From a point to the nearest edge; 0 inside."""
        return math.hypot(max(self.left - x, x - self.right, 0.0), max(self.top - y, y - self.bottom, 0.0))


@dataclass(frozen=True)
class Place:
    """Offset from a point to its name's anchor: the middle of the line, at the end that ``align`` tells."""

    dx: float
    dy: float
    align: Align


_NEAR, _FAR = MARK + 3, 2 * LINE
PLACES = (
    *(Place(_NEAR, 0, "left"), Place(-_NEAR, 0, "right"), Place(0, -LINE, "center"), Place(0, LINE, "center")),
    *(
        Place(5, 2 - LINE, "left"),
        Place(5, LINE - 2, "left"),
        Place(-5, 2 - LINE, "right"),
        Place(-5, LINE - 2, "right"),
    ),
    *(Place(0, -_FAR, "center"), Place(0, _FAR, "center")),
    *(Place(_NEAR, -_FAR, "left"), Place(_NEAR, _FAR, "left")),
    *(Place(-_NEAR, -_FAR, "right"), Place(-_NEAR, _FAR, "right")),
)
"""From the most to the least pleasant."""


def place_labels(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    essential: Sequence[bool],
    width: float,
    height: float,
    obstacles: Iterable[Box] = (),
) -> list[Place | None]:
    """Where each point's (x, y) name goes; None for a name for which there is no room.

    ``obstacles`` are other marks, such as error bars. Essential names come first and are never left out. Names stay
    within ``width`` × ``height`` where they can.
    """
    taken = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in points] + list(obstacles)
    frame = Box(0.0, 0.0, width, height)
    chosen: list[Place | None] = [None] * len(points)
    for index in sorted(range(len(points)), key=lambda index: not essential[index]):
        x, y = points[index]
        boxes = [text_box(x + place.dx, y + place.dy, names[index], place.align) for place in PLACES]
        around, reach = _around(boxes), max(box.distance(x, y) for box in boxes) + APART
        near = [other for other in taken if around.overlap(other)]
        rivals = [other for other in points if around.distance(*other) < reach]
        costs = [
            RANK * rank + _covered(box, near, frame) + STRAY * _strays(box, points[index], rivals)
            for rank, box in enumerate(boxes)
        ]
        best = costs.index(min(costs))
        if essential[index] or costs[best] - RANK * best <= LARGEST_SHARE * boxes[best].area:
            taken.append(boxes[best])
            chosen[index] = PLACES[best]
    return chosen


def text_box(x: float, middle: float, text: str, align: Align = "left") -> Box:
    """What a text takes that is anchored at ``x`` by the end that ``align`` tells."""
    length = CHARACTER * len(text)
    left = x - {"left": 0.0, "center": length / 2, "right": length}[align]
    return Box(left, middle - LINE / 2, left + length, middle + LINE / 2)


def _around(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all of them."""
    return Box(
        min(box.left for box in boxes),
        min(box.top for box in boxes),
        max(box.right for box in boxes),
        max(box.bottom for box in boxes),
    )


def _covered(box: Box, taken: Sequence[Box], frame: Box) -> float:
    """Pixels of other marks under the box; those outside the frame weigh ten times."""
    return sum(map(box.overlap, taken)) + 10 * (box.area - box.overlap(frame))


def _strays(box: Box, labelled: tuple[float, float], points: Sequence[tuple[float, float]]) -> bool:
    """True where a reader could take the name for another point's."""
    reach = box.distance(*labelled) + APART
    return any(box.distance(*other) < reach for other in points if other != labelled)
