"""Encoding and decoding, one layer: a whole prompt, the block that leaves the window while decoding, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import pytest
import torch
from racing import Race, replayed
from shapes import LAYERS, codecs, states

from kvbench.measure.turns import timed_in_turns

pytestmark = pytest.mark.benchmark(timer=replayed)

BLOCK = 32
"""Tokens that leave the recent window together."""


@dataclass(frozen=True)
class Case:
    """``work`` on ``tokens`` of ``batch`` rows."""

    work: str
    batch: int
    tokens: int
    rounds: int

    def __str__(self) -> str:
        return f"{self.work.replace(' ', '-')}-{self.batch}x{self.tokens}"


def _cases(batch: int, tokens: int, rounds: int) -> list[Case]:
    return [
        Case("encode a prompt", batch, tokens, rounds),
        Case("encode a block", batch, BLOCK, 5 * rounds),
        Case("decode everything", batch, tokens, rounds),
    ]


CASES = {
    "tiny": _cases(1, 64, 1),
    "quick": _cases(1, 4096, 10),
    "full": [*_cases(1, 8192, 30), *_cases(8, 4096, 10)],
}
ARMS = tuple(codecs())


@pytest.fixture(scope="module")
def race(case: Case) -> Race:
    """All codecs on one case."""
    keys, values = (states(case.batch, case.tokens, side) for side in ("keys", "values"))
    calls: dict[str, Callable[[], object]] = {}
    for name, codec in codecs().items():
        stored = codec.encode(keys, values)
        decodes = case.work.startswith("decode")
        calls[name] = _decoding(codec, stored) if decodes else _encoding(codec, keys, values)
    with torch.no_grad():
        times = timed_in_turns(calls, case.rounds, warmup=1)
    size = 4 * (keys.numel() + values.numel())
    facts = {name: _facts(case, size, median(seconds)) for name, seconds in times.items()}
    return Race(f"{case.work}, {case.batch} × {case.tokens:,} tokens", times, ("int8",), facts)


@pytest.mark.parametrize("arm", ARMS)
def test_codec(benchmark: Any, race: Race, arm: str) -> None:
    race.report(benchmark, arm)


def _encoding(codec: Any, keys: Any, values: Any) -> Callable[[], object]:
    return lambda: codec.encode(keys, values)


def _decoding(codec: Any, stored: Any) -> Callable[[], object]:
    return lambda: codec.decode(stored)


def _facts(case: Case, size: int, seconds: float) -> dict[str, Any]:
    """Rates of uncompressed fp32 bytes; for a block, what encoding adds to each decoded token in all layers."""
    facts = {"tokens_per_s": case.batch * case.tokens / seconds, "bandwidth": size / seconds}
    if case.work == "encode a block":
        facts["per_decoded_token_s"] = LAYERS * seconds / case.tokens
    return facts
