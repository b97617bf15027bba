"""Counts of bytes as people write them: ``512MiB``, ``1 GiB``, ``1e9``."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PositiveInt

UNITS = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

_TEXT = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*")
_WORDS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))


def byte_count(text: str) -> int:
    """The bytes that ``text`` names, to the nearest.

    Raises:
        ValueError: it is no positive number with one of ``UNITS``.

    >>> byte_count("512MiB"), byte_count("1.5 GiB"), byte_count("2e9")
    (536870912, 1610612736, 2000000000)
    """
    match = _TEXT.fullmatch(text)
    try:
        if match is None or match[2] not in UNITS:
            raise ValueError(text)
        count = float(match[1]) * UNITS[match[2]]
        if not (count >= 1 and math.isfinite(count)):
            raise ValueError(text)
    except ValueError:
        raise ValueError(f"cannot read {text!r} as bytes; write 512MiB, 1GiB or a number") from None
    return round(count)


def bytes_in_words(count: int) -> str:
    """In the largest unit that the count fills, with up to four digits.

    >>> bytes_in_words(2**29), bytes_in_words(3 * 2**29), bytes_in_words(700)
    ('512 MiB', '1.5 GiB', '700 B')
    """
    name, size = next((name, size) for name, size in _WORDS if count >= size or size == 1)
    return f"{count / size:.4g} {name}"


def at_least(count: int) -> str:
    """A text for :func:`byte_count` that names no less than ``count``, in whole units.

    >>> at_least(2**20 + 1), at_least(5000)
    ('2MiB', '5KiB')
    """
    name, size = next((name, size) for name, size in _WORDS[1:] if count >= size or size == 1)
    return f"{-(-count // size)}{name}"


def _read(value: Any) -> Any:
    return byte_count(value) if isinstance(value, str) else value


ByteCount = Annotated[PositiveInt, BeforeValidator(_read)]
"""A number of bytes that suite files may write with a unit."""
