"""Which sides of a codec are healed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kvbench.codecs.codec import Codec, SideCodec


def healed_sides(codec: Codec) -> dict[str, SideCodec]:
    """The sides of ``codec`` whose bases are healed, by name.

    Not the RoPE slice of a decoupled codec: it commutes with RoPE, as `kvbench convert` needs it, and nearly any change
    would end that.
    """
    fixed = {"keys"} if codec.decoupled else set()
    return {name: side for name, side in codec.sides.items() if side.transform is not None and name not in fixed}


def with_sides(codec: Codec, sides: Mapping[str, SideCodec]) -> Codec:
    """``codec`` with other ``sides``, by name."""
    changes: dict[str, Any] = {**sides}
    return replace(codec, **changes)
