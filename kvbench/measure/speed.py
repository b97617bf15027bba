"""Speed: time to first token, time per output token, and paired ratios to the baselines.

The arm under test and the baselines decode the same tokens in the same process, a few steps at a time in random order,
so that clock and neighbours drift over all of them alike; a ratio is the median over rounds of that round's pair.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Cache

from kvbench.cache.cache import CompressedCache
from kvbench.measure.arms import Arm
from kvbench.measure.prompt import ExactPrompt, exact_prompt
from kvbench.measure.roofline import Roofline, roofline
from kvbench.measure.statistics import PairedRatio, paired_ratio, percentiles

FILLS = 3
"""Times a cache is filled to time compression; the median counts."""


@dataclass(frozen=True)
class Speed:
    """Seconds. ``prefill_s`` is one row's exact prefill, ``compress_s`` taking the whole batch's prompt in."""

    batch: int
    prompt: int
    steps: int
    ttft_s: float
    prefill_s: float
    compress_s: float
    tpot_s: float
    tpot_p50_s: float
    tpot_p90_s: float
    tpot_p99_s: float
    tokens_per_s: float
    raw_step_s: tuple[float, ...]
    ratios: dict[str, PairedRatio]
    """Baseline name → speed-up over it: above 1 means that this arm is faster."""
    attention: str
    """What attended to the stored tokens, read back from the live cache."""
    roofline: Roofline | None = None
    """The least time of a step on this machine; None where it depends on the tokens."""


@dataclass(frozen=True)
class Times:
    """What arms did in turns: ``steps`` seconds by arm, timed round and step, and their ``caches`` afterwards."""

    steps: dict[str, list[list[float]]]
    caches: dict[str, Cache]

    def rounds(self, name: str) -> list[float]:
        """The mean step of each timed round."""
        return [sum(turn) / len(turn) for turn in self.steps[name]]

    def attention(self, name: str) -> str:
        """What attended to the stored tokens."""
        cache = self.caches[name]
        return cache.attended_by if isinstance(cache, CompressedCache) else "stock"


@dataclass
class SpeedBench:
    """A prompt (1, tokens) prefilled once, and rounds of ``steps`` decode steps on top of it.

    With ``batch`` > 1 the prompt's row is repeated: decode reads as many bytes as with different rows.
    """

    model_arm: Arm
    ids: Tensor
    batch: int
    steps: int
    rounds: int
    warmup: int
    seed: int
    _prompt: ExactPrompt | None = None
    _prefill_s: float = 0.0
    _tokens: Tensor = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        turns = (self.rounds + self.warmup) * self.steps
        picks = torch.randint(self.ids.shape[1], (self.batch, turns), generator=generator)
        self._tokens = self.ids[0][picks]

    def prompt(self) -> ExactPrompt:
        """The prefilled prompt; timed on its second run, the first warms up."""
        if self._prompt is None:
            arm = self.model_arm
            exact_prompt(arm.model, arm.geometry, self.ids[:, : min(256, self.ids.shape[1])])
            start = _now(arm)
            found = exact_prompt(arm.model, arm.geometry, self.ids)
            self._prefill_s = _now(arm) - start
            self._prompt = found.repeat(self.batch)
        return self._prompt

    def run(self, arm: Arm, baselines: Sequence[Arm]) -> Speed:
        """Time ``arm`` against ``baselines``; an arm of the same name among them is the arm itself."""
        prompt = self.prompt()
        compress = sorted(self._time_fill(arm, prompt) for _ in range(FILLS))[FILLS // 2]
        times = self.interleave({other.name: other for other in [*baselines, arm]})
        flat = [step for turn in times.steps[arm.name] for step in turn]
        spread = percentiles(flat)
        own = times.rounds(arm.name)
        return Speed(
            batch=self.batch,
            prompt=prompt.length,
            steps=self.steps,
            ttft_s=self._prefill_s + compress,
            prefill_s=self._prefill_s,
            compress_s=compress,
            tpot_s=spread.p50,
            tpot_p50_s=spread.p50,
            tpot_p90_s=spread.p90,
            tpot_p99_s=spread.p99,
            tokens_per_s=self.batch / spread.p50,
            raw_step_s=tuple(flat),
            ratios={other.name: paired_ratio(times.rounds(other.name), own) for other in baselines},
            attention=times.attention(arm.name),
            roofline=roofline(arm, times.caches[arm.name], self.batch, spread.p50),
        )

    def _time_fill(self, arm: Arm, prompt: ExactPrompt) -> float:
        with arm.entered():
            start = _now(arm)
            arm.fill(prompt)
            return _now(arm) - start

    def interleave(self, arms: dict[str, Arm]) -> Times:
        """Let ``arms`` decode the same tokens in turns, each on a cache of its own."""
        prompt = self.prompt()
        order = random.Random(self.seed)
        caches: dict[str, Cache] = {}
        for name, arm in arms.items():
            with arm.entered():
                caches[name] = arm.fill(prompt)
        times: dict[str, list[list[float]]] = {name: [] for name in arms}
        for turn in range(self.warmup + self.rounds):
            tokens = self._tokens[:, turn * self.steps : (turn + 1) * self.steps]
            for name in order.sample(list(arms), len(arms)):
                arm = arms[name]
                with arm.entered():
                    taken = [self._step(arm, caches[name], tokens[:, i : i + 1]) for i in range(self.steps)]
                if turn >= self.warmup:
                    times[name].append(taken)
        return Times(times, caches)

    def _step(self, arm: Arm, cache: Cache, token: Tensor) -> float:
        start = _now(arm)
        arm.forward(token, cache)
        return _now(arm) - start


def _now(arm: Arm) -> float:
    if arm.model.device.type == "cuda":
        torch.cuda.synchronize(arm.model.device)
    return time.perf_counter()
