"""Taking turns: what is compared runs in every round once, in an order shuffled anew, so that drift hits all alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from kvbench.hardware.allocator import keep_freed_memory


def turns(names: Sequence[str], rounds: int, warmup: int = 0, seed: int = 0) -> Iterator[tuple[int, str]]:
    """(round, name) for each turn; the ``warmup`` rounds come first and are numbered from -``warmup`` to -1."""
    order = random.Random(seed)
    for number in range(-warmup, rounds):
        for name in order.sample(names, len(names)):
            yield number, name


def timed_in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2, seed: int = 0
) -> dict[str, list[float]]:
    """Seconds by name and round, of one call each; those of the warm-up are not kept.

    From then on the process keeps freed memory: what ran before has no say in how long an allocation takes.
    """
    keep_freed_memory()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number, name in turns(list(calls), rounds, warmup, seed):
        start = time.perf_counter()
        calls[name]()
        taken = time.perf_counter() - start
        if number >= 0:
            seconds[name].append(taken)
    return seconds
