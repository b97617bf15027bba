"""One layer's attention of one decode step, alone: what is read how fast, and how exactly.

``folded`` is the strong baseline: query heads folded over their KV head, fp32 matrix products on preallocated tensors.
Buffers are rotated over more bytes than caches hold, since between two steps of a layer all others have run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import pytest
import torch
from racing import Race, replayed
from shapes import HEADS, KV_HEADS, SCALING, before_rope, codecs, query, rotation, states
from torch import Tensor
from torch.nn import functional

from kvbench.cache.body_attention import BodyAttention
from kvbench.hardware.bandwidth import Bandwidth
from kvbench.kernels.decode import attend_exact
from kvbench.kernels.reading import Reading
from kvbench.kernels.reference import Partial, partial_attention
from kvbench.measure.turns import timed_in_turns

pytestmark = pytest.mark.benchmark(timer=replayed)

COLD = 200 * 2**20
"""Bytes over which each arm's buffers rotate."""

EXACT = ("folded", "sdpa", "none", "none, 16 bit")
PLAIN = {
    "int8, in plain torch": ("int8", Reading("reference")),
    "latents of half rank, int8, rebuilt": ("latents of half rank, int8", Reading(read="reconstruct")),
}
BEFORE_ROPE = {
    **{name: (name, Reading()) for name in before_rope()},
    "keys before RoPE, 3 bits, joint, in plain torch": ("keys before RoPE, 3 bits, joint", Reading("reference")),
}
ARMS = (*EXACT, *codecs(), *PLAIN, *BEFORE_ROPE)


@dataclass(frozen=True)
class Case:
    """``batch`` rows of ``tokens``."""

    batch: int
    tokens: int
    rounds: int
    cold: int = COLD

    def __str__(self) -> str:
        return f"{self.batch}x{self.tokens}"


CASES = {
    "tiny": [Case(2, 128, 2, 1)],
    "quick": [Case(8, 4096, 40), Case(1, 8192, 60)],
    "full": [Case(1, 2048, 200), Case(1, 8192, 200), Case(1, 32768, 60), Case(8, 4096, 120), Case(32, 2048, 60)],
}
Stored = dict[str, Tensor]


@dataclass(frozen=True)
class Arm:
    """``attend`` over ``stored``; ``decoded`` are the keys and values that it stands for."""

    stored: Stored
    attend: Callable[[Stored], Partial]
    decoded: tuple[Tensor, Tensor]

    @property
    def bytes_read(self) -> int:
        """What a step reads of the context."""
        return sum(tensor.numel() * tensor.itemsize for tensor in self.stored.values())


@pytest.fixture(scope="module")
def race(case: Case, bandwidth: Bandwidth) -> Race:
    """All arms on one case."""
    arms = _arms(case)
    copies: dict[int, Any] = {}
    calls, facts = {}, {}
    for name, arm in arms.items():
        identity = id(arm.stored)
        if identity not in copies:  # exact arms share theirs
            copies[identity] = [
                {key: tensor.clone() for key, tensor in arm.stored.items()} for _ in range(_count(arm, case))
            ]
        calls[name] = _cycling(arm, copies[identity])
        facts[name] = _facts(arm, query(case.batch))
    with torch.no_grad():
        times = timed_in_turns(calls, case.rounds)
    for name, arm in arms.items():
        speed = arm.bytes_read / sorted(times[name])[len(times[name]) // 2]
        facts[name] |= {
            "bandwidth": speed,
            "share_of_read": speed / bandwidth.read,
            "share_of_copy": speed / bandwidth.copy,
        }
    return Race(
        f"attention alone, {case.batch} × {case.tokens:,} tokens", times, ("folded", "none", "none, 16 bit"), facts
    )


@pytest.mark.parametrize("arm", ARMS)
def test_attention(benchmark: Any, race: Race, arm: str) -> None:
    race.report(benchmark, arm)


def _count(arm: Arm, case: Case) -> int:
    return max(1, -(-case.cold // arm.bytes_read))


def _cycling(arm: Arm, copies: list[Stored]) -> Callable[[], object]:
    """The arm on the next copy, each time."""
    endless = cycle(copies)
    return lambda: arm.attend(next(endless)).output  # what is pending is computed when its output is read


@torch.no_grad()
def _arms(case: Case) -> dict[str, Arm]:
    queries, keys, values = query(case.batch), *(states(case.batch, case.tokens, side) for side in ("keys", "values"))
    exact = {"keys": keys, "values": values}
    rounded = {name: states.half() for name, states in exact.items()}
    arms = {
        "folded": Arm(exact, lambda stored: _folded(queries, stored), (keys, values)),
        "sdpa": Arm(exact, lambda stored: _sdpa(queries, stored), (keys, values)),
        "none": Arm(exact, lambda stored: _none(queries, stored), (keys, values)),
        "none, 16 bit": Arm(rounded, lambda stored: _none(queries, stored), (rounded["keys"], rounded["values"])),
    }
    for name, codec in codecs().items():
        arms[name] = _coded(codec, queries, codec.encode(keys, values), case.tokens, Reading())
    for name, (base, reading) in PLAIN.items():
        arms[name] = _coded(codecs()[base], queries, arms[base].stored, case.tokens, reading)
    encoded = {name: codec.encode(keys, values) for name, codec in before_rope().items()}
    for name, (base, reading) in BEFORE_ROPE.items():
        codec = before_rope()[base]
        turned = rotation(case.tokens, codec.bands)
        arms[name] = _coded(codec, queries, encoded[base], case.tokens, reading, turned)
    return arms


def _coded(codec: Any, queries: Tensor, stored: Stored, tokens: int, reading: Reading, rotate: Any = None) -> Arm:
    keys, values = codec.decode(stored)
    return Arm(
        stored,
        lambda copy: BodyAttention(codec, reading).attend(queries, copy, tokens, rotate, SCALING),
        (keys if rotate is None else rotate(keys, 0, tokens), values),
    )


def _folded(queries: Tensor, stored: Stored) -> Partial:
    folded = queries.view(queries.shape[0], KV_HEADS, HEADS // KV_HEADS, -1) * SCALING
    weights = torch.softmax(folded @ stored["keys"].transpose(-1, -2), -1)
    return Partial((weights @ stored["values"]).view(queries.shape), weights, "torch")


def _sdpa(queries: Tensor, stored: Stored) -> Partial:
    keys, values = stored["keys"], stored["values"]
    output = functional.scaled_dot_product_attention(queries, keys, values, scale=SCALING, enable_gqa=True)
    return Partial(output, output, "torch sdpa")


def _none(queries: Tensor, stored: Stored) -> Partial:
    return attend_exact(queries, stored["keys"], stored["values"], SCALING, None, None, True)


@torch.no_grad()
def _facts(arm: Arm, queries: Tensor) -> dict[str, Any]:
    """Bytes, and the distance to fp64 attention over the very values that are stored."""
    part = arm.attend(arm.stored)
    keys, values = (states.double() for states in arm.decoded)
    truth = partial_attention(queries.double(), keys, values, SCALING).output
    error = float((part.output.double() - truth).norm() / truth.norm())
    return {"bytes_read": arm.bytes_read, "error": error, "attention": part.by}
