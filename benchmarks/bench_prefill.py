"""What compression adds to a prompt: the whole of it at once, and chunk by chunk over a past that is compressed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from models import ARMS, arm, bench, prompt_ids, speed_bench
from racing import Race, replayed

from kvbench.measure.arms import Arm
from kvbench.measure.turns import timed_in_turns

pytestmark = pytest.mark.benchmark(timer=replayed)

NAMES = tuple(name for name in ARMS if name != "folded")
"""A prompt is attended alike with and without kernels."""


@dataclass(frozen=True)
class Case:
    """A prompt of ``tokens``; with a ``chunk``, pieces of that size on top of it."""

    tokens: int
    rounds: int
    chunk: int = 0
    tiny: bool = False

    def __str__(self) -> str:
        return f"{self.tokens}+{self.chunk}" if self.chunk else str(self.tokens)


CASES = {
    "tiny": [Case(128, 1, tiny=True), Case(256, 1, 32, tiny=True)],
    "quick": [Case(1024, 3), Case(1024, 5, 128)],
    "full": [Case(2048, 5), Case(4096, 5), Case(4096, 9, 512)],
}


@pytest.fixture(scope="module")
def race(case: Case) -> Race:
    """All arms on one prompt."""
    arms = {name: arm(name, case.tiny) for name in NAMES}
    warmup = 1
    if case.chunk:
        what = f"{case.chunk:,} tokens on a past of {case.tokens:,}"
        calls = _chunks(case, arms, case.rounds + warmup)
    else:
        what = f"prompt of {case.tokens:,} tokens"
        ids = prompt_ids(case.tokens, case.tiny)
        calls = {name: _whole(arm, ids) for name, arm in arms.items()}
    times = timed_in_turns(calls, case.rounds, warmup)
    return Race(
        f"{what}, {bench(case.tiny).name}", times, ("none", "hf"), {name: {"spec": ARMS[name][0]} for name in NAMES}
    )


@pytest.mark.parametrize("arm", NAMES)
def test_prefill(benchmark: Any, race: Race, arm: str) -> None:
    race.report(benchmark, arm)


def _whole(arm: Arm, ids: Any) -> Callable[[], object]:
    """Time to first token: the prompt through the model, into a new cache."""

    def run() -> None:
        with arm.entered():
            arm.forward(ids, arm.new_cache(), logits_to_keep=1)

    return run


def _chunks(case: Case, arms: dict[str, Arm], turns: int) -> dict[str, Callable[[], object]]:
    """The next chunk on a cache that has taken the prompt and all chunks before in."""
    prompt = speed_bench(case.tokens, case.tiny).prompt()
    ids = prompt_ids(turns * case.chunk, case.tiny)

    def chunk_by_chunk(arm: Arm) -> Callable[[], object]:
        with arm.entered():
            cache = arm.fill(prompt)
        upcoming = iter(ids.split(case.chunk, 1))

        def run() -> None:
            with arm.entered():
                arm.forward(next(upcoming), cache, logits_to_keep=1)

        return run

    return {name: chunk_by_chunk(arm) for name, arm in arms.items()}
