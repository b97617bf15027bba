"""Parts of a suite for several machines: every n-th trial."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from kvbench.errors import KvbenchError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """The ``number``-th of ``count`` parts, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """Of ``2/4``; the whole of None.

        Raises:
            KvbenchError: it is no such part.
        """
        if text is None:
            return WHOLE
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        number, count = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= number <= count:
            raise KvbenchError(f"shard {text!r} is not i/n with 1 ≤ i ≤ n, as in 2/4")
        return cls(number, count)

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Every ``count``-th, so that the parts differ by one at most."""
        return list(items[self.number - 1 :: self.count])


WHOLE = Shard(1, 1)
