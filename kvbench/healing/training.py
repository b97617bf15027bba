"""What a healing is told, and what it says of itself as it goes."""

from __future__ import annotations

import math
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from kvbench.errors import KvbenchError
from kvbench.storage.frozen import Frozen

RATE = 0.003
NOTHING = 1e-8
"""Nats per token that rounding alone explains."""


class Training(Frozen):
    """``steps`` of ``batch`` windows each, out of ``sequences`` windows of ``tokens`` tokens of the calibration split.

    ``rate`` is how far a step goes, in the units of :mod:`kvbench.healing.scales`. Every ``every`` steps the divergence
    on ``held_out`` documents of the development split is measured, for every share of the ranks in ``ranks`` (falling);
    after ``patience`` times without gain it is over. Steps train the ``ranks`` in turn; ``seed`` shuffles the windows.
    """

    steps: PositiveInt = 300
    rate: float = RATE
    batch: PositiveInt = 1
    tokens: PositiveInt = 512
    sequences: PositiveInt = 48
    held_out: PositiveInt = 4
    every: PositiveInt = 20
    patience: PositiveInt = 10
    ranks: tuple[float, ...] = (1.0,)
    seed: NonNegativeInt = 0

    @classmethod
    def of(cls, rate: float = RATE, ranks: str = "1", seed: int = 0, **counts: int) -> Training:
        """Settings as they are given, the others by default; ``ranks`` as in ``"0.25,0.5"``.

        Raises:
            KvbenchError: a count below 1, a rate that is no positive number, or shares outside (0, 1].
        """
        require_positive(**counts)
        if not (rate > 0 and math.isfinite(rate)):
            raise KvbenchError(f"rate must be a positive number, got {rate:g}")
        if seed < 0:
            raise KvbenchError(f"seed must be at least 0, got {seed}")
        return cls(rate=rate, ranks=shares(ranks), seed=seed, **counts)


def require_positive(**counts: int) -> None:
    """Refuse counts below 1.

    Raises:
        KvbenchError: the first of them.
    """
    for name, count in counts.items():
        if count < 1:
            raise KvbenchError(f"{name.replace('_', '-')} must be at least 1, got {count}")


def shares(text: str) -> tuple[float, ...]:
    """``"0.25,0.5"`` as shares of the ranks, the largest first.

    Raises:
        KvbenchError: not one or more different numbers in (0, 1].
    """
    try:
        given = [float(part) for part in text.split(",")]
    except ValueError:
        given = []
    if not given or len({*given}) < len(given) or not all(0 < share <= 1 for share in given):
        raise KvbenchError(f"cannot read ranks {text!r}; write shares of the spec's ranks in (0, 1], as in 0.25,0.5,1")
    return tuple(sorted(given, reverse=True))


class Evaluation(Frozen):
    """After ``step`` steps: mean KL(uncompressed ‖ compressed) per token in nats on the held-out documents.

    ``klds`` has one for each of ``Training.ranks``; ``trained`` is the mean over the steps since the last evaluation.
    """

    step: NonNegativeInt
    klds: tuple[float, ...]
    trained: float | None = None


def best_of(evaluations: tuple[Evaluation, ...] | list[Evaluation]) -> int:
    """Which evaluation is the best: by the mean over all ranks of what is left of the divergence at the start."""
    start = evaluations[0].klds

    def left(evaluation: Evaluation) -> float:
        return sum(kld / max(first, NOTHING) for kld, first in zip(evaluation.klds, start, strict=True))

    return min(range(len(evaluations)), key=lambda index: left(evaluations[index]))


def in_words(value: Any) -> str:
    """A setting's value for a message."""
    if isinstance(value, tuple):
        return ",".join(f"{item:g}" for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
