"""Speed: time to first token, time per output token, and paired ratios to the baselines.

The arm under test and the baselines decode a document's own next tokens in the same process, a few steps at a time in
random order, so that clock and neighbours drift over all of them alike. Times per token and ratios are means over whole
block cycles (:mod:`kvbench.measure.cycles`): what is encoded now and then is paid for by every token. Freed memory is
kept for reuse, so that what ran before a trial has no say in how long its allocations take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from kvbench.cache.cache import CacheBytes
from kvbench.compressors.methods.none import IN_16_BIT
from kvbench.hardware.allocator import keep_freed_memory
from kvbench.measure.arms import Arm
from kvbench.measure.cycles import (
    cycle_of,
    encode_s_per_token,
    encoded_tokens,
    grew,
    require_whole_cycles,
    speed_up,
)
from kvbench.measure.divergence import divergence
from kvbench.measure.memory import walk
from kvbench.measure.parts.speed import SpeedResult
from kvbench.measure.prompt import ExactPrompt, exact_prompt
from kvbench.measure.results import Bytes, Interval
from kvbench.measure.roofline import roofline
from kvbench.measure.statistics import percentiles
from kvbench.measure.turns import turns

RATIOS = {"none": "ratio_to_none", IN_16_BIT: "ratio_to_16_bit", "hf": "ratio_to_hf"}
"""The field of a :class:`SpeedResult` for the speed-up over each baseline."""
FILLS = 3
"""Times a cache is filled to time compression; the median counts."""


@dataclass(frozen=True)
class Times:
    """What arms did in turns, by name: seconds and whether a block was encoded, by timed round and step; their
    ``caches`` afterwards, and the ``kld`` of every timed step against the arm ``none``, if that is among them."""

    steps: dict[str, list[list[float]]]
    encoded: dict[str, list[list[bool]]]
    caches: dict[str, Cache]
    kld: dict[str, list[float]] = field(default_factory=dict)

    def rounds(self, name: str) -> list[float]:
        """The mean step of each timed round."""
        return [sum(turn) / len(turn) for turn in self.steps[name]]

    def encodings(self, *names: str) -> list[int]:
        """How many steps of each timed round encoded a block, of all arms named together."""
        return [sum(map(sum, turns)) for turns in zip(*(self.encoded[name] for name in names), strict=True)]

    def attention(self, name: str) -> str:
        """What attended to the stored tokens."""
        return Arm.attended_by(self.caches[name])


@dataclass
class SpeedBench:
    """``ids`` (1, tokens): a prompt, prefilled once, and the tokens that rounds of ``steps`` steps decode on top of it.

    With ``batch`` > 1 the row is repeated: decode reads as many bytes as with different rows.
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

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt: all that are not decoded."""
        return self.ids.shape[1] - (self.rounds + self.warmup) * self.steps

    def prompt(self) -> ExactPrompt:
        """The prefilled prompt; timed on its second run, the first warms up."""
        if self._prompt is None:
            keep_freed_memory()
            arm, ids = self.model_arm, self.ids[:, : self.prompt_tokens]
            exact_prompt(arm.model, arm.geometry, ids[:, :256])
            start = _now(arm)
            prompt = exact_prompt(arm.model, arm.geometry, ids)
            self._prefill_s = _now(arm) - start
            self._prompt = prompt.repeat(self.batch)
        return self._prompt

    def run(self, arm: Arm, baselines: Sequence[Arm]) -> SpeedResult:
        """Time ``arm`` against ``baselines``; an arm of the same name among them is the arm itself.

        Raises:
            KvbenchError: the timed steps are no whole number of the arm's block cycles.
        """
        cycle = cycle_of(arm.new_cache())
        require_whole_cycles(arm.name, cycle, self.steps, self.rounds)
        prompt = self.prompt()
        compress = sorted(self._time_fill(arm, prompt) for _ in range(FILLS))[FILLS // 2]
        sizes: list[CacheBytes] = []
        arms = {other.name: other for other in [*baselines, arm]}
        times = self.interleave(arms, {arm.name: lambda cache: sizes.append(walk(cache))})
        flat = [step for turn in times.steps[arm.name] for step in turn]
        encoded = [did for turn in times.encoded[arm.name] for did in turn]
        spread, mean, kld = percentiles(flat), sum(flat) / len(flat), times.kld.get(arm.name)
        return SpeedResult(
            batch=self.batch,
            prompt=prompt.length,
            steps=self.steps,
            cycle=cycle,
            ttft_s=self._prefill_s + compress,
            prefill_s=self._prefill_s,
            compress_s=compress,
            tpot_s=mean,
            tpot_p50_s=spread.p50,
            tpot_p90_s=spread.p90,
            tpot_p99_s=spread.p99,
            encode_s_per_token=encode_s_per_token(flat, encoded),
            tokens_per_s=self.batch / mean,
            raw_step_s=tuple(flat),
            **_ratios(times, arm, baselines),
            attention=times.attention(arm.name),
            allocated=Bytes.of(sizes[0]),
            largest_bytes=max(size.total for size in sizes),
            kld_mean=None if kld is None else sum(kld) / len(kld),
            roofline=roofline(arm, times.caches[arm.name], self.batch, mean),
        )

    def _time_fill(self, arm: Arm, prompt: ExactPrompt) -> float:
        with arm.entered():
            start = _now(arm)
            arm.fill(prompt)
            return _now(arm) - start

    def interleave(
        self,
        arms: Mapping[str, Arm],
        watch: Mapping[str, Callable[[Cache], object]] | None = None,
        copies: Mapping[str, int] | None = None,
    ) -> Times:
        """Let ``arms`` decode the same tokens in turns, each on a cache of its own.

        ``watch`` is shown the caches of the arms it names, after the prompt and after each step, off the clock. An arm
        that ``copies`` names decodes as many copies of the batch.
        """
        prompt, watching, repeats = self.prompt(), watch or {}, copies or {}
        caches: dict[str, Cache] = {}
        for name, arm in arms.items():
            with arm.entered():
                caches[name] = arm.fill(prompt, repeats.get(name, 1))
            watching.get(name, _nothing)(caches[name])
        times = Times({name: [] for name in arms}, {name: [] for name in arms}, caches)
        logits: dict[str, Tensor] = {}
        for turn, name in turns(list(arms), self.rounds, self.warmup, self.seed):
            first = prompt.length + (turn + self.warmup) * self.steps
            tokens = self.ids[:, first : first + self.steps].expand(self.batch * repeats.get(name, 1), -1)
            seconds, encoded, logits[name] = self._turn(arms[name], caches[name], tokens, watching.get(name, _nothing))
            if turn >= 0:
                times.steps[name].append(seconds)
                times.encoded[name].append(encoded)
            if len(logits) == len(arms):  # the round is complete
                if turn >= 0:
                    _compare(logits, times.kld)
                logits = {}
        return times

    def _turn(
        self, arm: Arm, cache: Cache, tokens: Tensor, watch: Callable[[Cache], object]
    ) -> tuple[list[float], list[bool], Tensor]:
        """Seconds of each step on ``tokens`` (batch, steps), whether it encoded, and the first row's logits."""
        seconds, logits, counts = [], [], [encoded_tokens(cache)]
        with arm.entered():
            for token in tokens.split(1, 1):
                start = _now(arm)
                output = arm.forward(token, cache)
                seconds.append(_now(arm) - start)
                logits.append(output[0, -1].float())  # read and counted off the clock
                counts.append(encoded_tokens(cache))
                watch(cache)
        return seconds, grew(counts), torch.stack(logits)


def _compare(logits: Mapping[str, Tensor], kld: dict[str, list[float]]) -> None:
    """Add every arm's KLD (steps) against ``none``, if that is among them."""
    if "none" not in logits:
        return
    before = torch.log_softmax(logits["none"], -1)
    for name, after in logits.items():
        kld.setdefault(name, []).extend(divergence(before, torch.log_softmax(after, -1)).tolist())


def _nothing(cache: Cache) -> None:
    """Nobody watches."""


def _ratios(times: Times, arm: Arm, baselines: Sequence[Arm]) -> dict[str, Any]:
    """The fields of a :class:`SpeedResult` that tell of speed-ups."""
    fields: dict[str, Any] = {}
    for baseline in baselines:
        encodings = times.encodings(*{baseline.name, arm.name})
        ratio = speed_up(times.rounds(baseline.name), times.rounds(arm.name), encodings)
        bounds = None if ratio.low is None or ratio.high is None else (ratio.low, ratio.high)
        names = [RATIOS[baseline.name]]
        if baseline.name == "none" and arm.geometry.dtype.itemsize == 2:
            names.append(RATIOS[IN_16_BIT])
        for name in names:
            fields |= {name: ratio.ratio, f"{name}_interval": Interval.of(bounds)}
        fields["interval_method"] = ratio.method
    return fields


def _now(arm: Arm) -> float:
    if arm.model.device.type == "cuda":
        torch.cuda.synchronize(arm.model.device)
    return time.perf_counter()
