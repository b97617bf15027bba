"""How a compressed layer divides its context, and in which dtype what stays exact is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ExactDtype = Literal["model", "float16", "bfloat16"]


@dataclass(frozen=True)
class Spans:
    """How a layer divides its context. ``recent`` and ``block`` in tokens; ``block`` leave the window at a time.

    ``exact`` is the dtype that sinks and window are stored in, and the whole context of layers that are not compressed;
    "model" is the dtype that the model runs in.
    """

    sinks: int = 4
    recent: int = 64
    block: int = 32
    exact: ExactDtype = "model"

    def boundary(self, tokens: int, first: int = 0) -> int:
        """Slots [0, boundary) have left the tail once ``tokens`` are cached; sinks end at slot ``first`` + sinks.

        Zero while that is not enough for the sinks of every row.
        """
        leaving = tokens - self.sinks - self.recent
        if leaving < 0:
            return 0
        boundary = self.sinks + leaving // self.block * self.block
        return boundary if boundary >= first + self.sinks else 0
