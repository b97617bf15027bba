"""How much room a buffer that grows makes for later tokens."""

from __future__ import annotations

HEADROOM = 16
"""A full buffer grows by 1/HEADROOM: a token is copied HEADROOM times in its life, and at most 6 % lie idle."""


def with_headroom(needed: int) -> int:
    """Capacity of a buffer that must grow to hold ``needed`` entries.

    >>> with_headroom(1024)
    1088
    """
    return needed + needed // HEADROOM
