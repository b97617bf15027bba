"""Arms that run in turns in one process, and their times handed to pytest-benchmark.

pytest-benchmark times one function after another, minutes apart, while clocks and neighbours drift. Here all arms of a
race run once in every round, in an order that is shuffled anew each time; a ratio is the median over rounds of that
round's pair. The times are then replayed to pytest-benchmark, arm by arm, on a clock that only moves by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kvbench.measure.statistics import paired_ratio

_now = [0.0]


def replayed() -> float:
    """The clock that pytest-benchmark reads: ``pytest.mark.benchmark(timer=replayed)``."""
    return _now[0]


@dataclass(frozen=True)
class Race:
    """Times of all arms in the same rounds, ``facts`` about each, and the ``baselines`` among them."""

    group: str
    times: dict[str, list[float]]
    baselines: Sequence[str] = ()
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def report(self, benchmark: Any, arm: str) -> None:
        """Hand one arm's times, its ratios (above 1: faster than the baseline) and its facts to pytest-benchmark."""
        times = self.times[arm]
        ratios = {name: asdict(paired_ratio(self.times[name], times)) for name in self.baselines if name != arm}
        benchmark.group = self.group
        benchmark.extra_info |= {"arm": arm, "ratios": ratios} | self.facts.get(arm, {})
        upcoming = iter(times)

        def replay() -> None:
            _now[0] += next(upcoming)

        benchmark.pedantic(replay, rounds=len(times), iterations=1, warmup_rounds=0)
