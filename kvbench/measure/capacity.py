"""What a budget of bytes buys: the largest batch whose cache stays within it, and the tokens a second of that batch.

Real caches of one and of two rows decode what is timed, and are walked after every step. All rows take the same bytes,
so the two tell what any batch takes; the caches that are then timed, of the largest batch, are walked after every step
too. Should one exceed the budget, its batch is lowered and all are timed anew: no figure rests on arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from transformers import Cache

from kvbench.cache.cache import CacheBytes
from kvbench.errors import KvbenchError
from kvbench.hardware.allocator import release_free_memory
from kvbench.hardware.available_memory import available_memory
from kvbench.measure.arms import Arm
from kvbench.measure.cycles import cycle_of, require_whole_cycles, speed_up
from kvbench.measure.memory import walk
from kvbench.measure.parts.capacity import BaselineCapacity, CapacityResult
from kvbench.measure.results import Bytes, Interval
from kvbench.measure.speed import SpeedBench, Times
from kvbench.storage.units import at_least, bytes_in_words

GIB = 2**30

LAYERS_IN_FLIGHT = 8
"""Uncompressed layers of a whole batch that memory must have room for while a cache is filled: one layer's prompt, and
what its encoding computes. Of the built-in suite's compressors ``ftc`` was measured to take the most, 7."""


@dataclass(frozen=True)
class RowBytes:
    """What caches of ``one`` and of ``two`` rows had allocated at the same times, in bytes, and ``bases``, which all
    rows share."""

    one: tuple[int, ...]
    two: tuple[int, ...]
    bases: int

    def most(self, batch: int) -> int:
        """The most that ``batch`` rows take at any of these times, with bases."""
        return self.bases + max(one + (batch - 1) * (two - one) for one, two in zip(self.one, self.two, strict=True))

    def largest_batch(self, budget: int) -> int:
        """The most rows that take no more than ``budget``; 0 where one takes more."""
        spare = budget - self.bases
        return max(0, min(1 + (spare - one) // (two - one) for one, two in zip(self.one, self.two, strict=True)))


@dataclass
class _Filled:
    """The walks over one arm's cache, after the prompt and after every step."""

    walks: list[CacheBytes] = field(default_factory=list)

    def watch(self, cache: Cache) -> None:
        self.walks.append(walk(cache))

    @property
    def totals(self) -> tuple[int, ...]:
        return tuple(size.total for size in self.walks)


@dataclass
class CapacityBench:
    """One budget in bytes, filled by one arm after another. ``decoding`` has one row; ``max_batch`` None is any."""

    decoding: SpeedBench
    budget: int
    max_batch: int | None = None
    _row_bytes: dict[str, RowBytes] = field(default_factory=dict)
    _batches: dict[str, int] = field(default_factory=dict)

    def run(self, arm: Arm, baselines: Sequence[Arm]) -> CapacityResult:
        """Time ``arm`` and ``baselines`` in turns, each at the largest batch that the budget holds.

        A baseline of which not even a row fits is left out; one of the arm's name is the arm itself.

        Raises:
            KvbenchError: not a row of ``arm`` fits, the machine's memory does not hold the batches at once, or the
                timed steps are no whole number of the arm's block cycles.
        """
        cycle = cycle_of(arm.new_cache())
        require_whole_cycles(arm.name, cycle, self.decoding.steps, self.decoding.rounds, "capacity")
        arms = {each.name: each for each in [*baselines, arm] if self.batch(each) or each is arm}
        times, filled = self._within_budget(arms, arm)
        walks, batch, bases = filled[arm.name].walks, self.batch(arm), self._sizes(arm).bases
        steps = [step for turn in times.steps[arm.name] for step in turn]
        mean, largest = sum(steps) / len(steps), max(filled[arm.name].totals)
        kld, pairs = times.kld.get(arm.name), [self._over(name, arm.name, times, filled) for name in arms]
        return CapacityResult(
            budget=self.budget,
            prompt=self.decoding.prompt_tokens,
            batch=batch,
            capped=batch == self.max_batch and self._sizes(arm).largest_batch(self.budget) > batch,
            allocated=Bytes.of(walks[0]),
            largest_bytes=largest,
            model_level_bytes=bases,
            one_more_bytes=self._sizes(arm).most(batch + 1),
            steps=self.decoding.steps,
            cycle=cycle,
            step_s=mean,
            tokens_per_s=batch / mean,
            tokens_per_s_per_gib=batch / mean / ((largest + bases) / GIB),
            raw_step_s=tuple(steps),
            baselines=tuple(over for over, _ in pairs if over.name in {each.name for each in baselines}),
            interval_method=pairs[0][1],
            attention=times.attention(arm.name),
            kld_mean=None if kld is None else sum(kld) / len(kld),
        )

    def batch(self, arm: Arm) -> int:
        """The largest batch of ``arm``, by the bytes of a row; smaller once a real one has taken too much."""
        if arm.name not in self._batches:
            most = self._sizes(arm).largest_batch(self.budget)
            self._batches[arm.name] = most if self.max_batch is None else min(most, self.max_batch)
        return self._batches[arm.name]

    def _sizes(self, arm: Arm) -> RowBytes:
        """Walked once for each arm."""
        if arm.name not in self._row_bytes:
            one, two = _Filled(), _Filled()
            watch = {"one row": one.watch, "two rows": two.watch}
            self.decoding.interleave(dict.fromkeys(watch, arm), watch, {"two rows": 2})
            bases = 0 if arm.plan is None else arm.plan.model_level_bytes()
            self._row_bytes[arm.name] = RowBytes(one.totals, two.totals, bases)
        return self._row_bytes[arm.name]

    def _within_budget(self, arms: Mapping[str, Arm], subject: Arm) -> tuple[Times, dict[str, _Filled]]:
        """Decode with all ``arms`` at their batches, lowered until what is walked stays within the budget."""
        while True:
            self._require_a_row(subject)
            self._require_memory(arms)
            filled = {name: _Filled() for name in arms}
            watch = {name: each.watch for name, each in filled.items()}
            times = self.decoding.interleave(arms, watch, {name: self.batch(arm) for name, arm in arms.items()})
            taken = {name: max(each.totals) + self._sizes(arms[name]).bases for name, each in filled.items()}
            if max(taken.values()) <= self.budget:
                return times, filled
            for name, most in taken.items():
                if most > self.budget:
                    self._batches[name] = min(self._batches[name] - 1, self._batches[name] * self.budget // most)
            del times  # and with it the caches
            arms = {name: arm for name, arm in arms.items() if self.batch(arm) or arm is subject}

    def _require_a_row(self, arm: Arm) -> None:
        if self.batch(arm) == 0:
            least, prompt = self._sizes(arm).most(1), self.decoding.prompt_tokens
            raise KvbenchError(
                f"{arm.name} takes {bytes_in_words(least)} for one row of {prompt:,} tokens, more than the budget of "
                f'{bytes_in_words(self.budget)}; set budget to "{at_least(least)}" or more under [workload.capacity]'
            )

    def _require_memory(self, arms: Mapping[str, Arm]) -> None:
        """Refuse batches whose caches, alive at once, are more than the machine has memory for."""
        release_free_memory()
        batches = {name: self.batch(arm) for name, arm in arms.items()}
        caches = sum(self._sizes(arm).most(batches[name]) for name, arm in arms.items())
        one = next(iter(arms.values()))
        layer = max(layer.elements_per_token for layer in one.geometry.layers) * one.geometry.dtype.itemsize
        filling = LAYERS_IN_FLIGHT * layer * self.decoding.prompt_tokens * max(batches.values())
        available = available_memory(str(one.model.device))
        if caches + filling > available:
            raise KvbenchError(
                f"a budget of {bytes_in_words(self.budget)} needs {bytes_in_words(caches + filling)} of memory, for "
                f"the caches of {', '.join(arms)} at once and for filling them, and {bytes_in_words(available)} are "
                "free; lower budget or set max_batch under [workload.capacity]"
            )

    def _over(
        self, baseline: str, candidate: str, times: Times, filled: Mapping[str, _Filled]
    ) -> tuple[BaselineCapacity, str]:
        """How ``candidate`` compares to ``baseline``, and what made the interval."""
        pace = speed_up(times.rounds(baseline), times.rounds(candidate), times.encodings(*{baseline, candidate}))
        more = self._batches[candidate] / self._batches[baseline]
        bounds = None if pace.low is None or pace.high is None else (more * pace.low, more * pace.high)
        rounds = times.rounds(baseline)
        over = BaselineCapacity(
            name=baseline,
            batch=self._batches[baseline],
            largest_bytes=max(filled[baseline].totals),
            tokens_per_s=self._batches[baseline] * len(rounds) / sum(rounds),
            ratio=more * pace.ratio,
            ratio_interval=Interval.of(bounds),
        )
        return over, pace.method
