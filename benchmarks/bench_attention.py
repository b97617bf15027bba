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
from racing import Race, interleaved, replayed
from shapes import HEADS, KV_HEADS, SCALING, codecs, query, states
from torch import Tensor
from torch.nn import functional

from kvbench.hardware.bandwidth import Bandwidth
from kvbench.kernels.decode import attend_exact
from kvbench.kernels.reading import Reading
from kvbench.kernels.reference import Partial, partial_attention

pytestmark = pytest.mark.benchmark(timer=replayed)

COLD = 200 * 2**20
"""Bytes over which each arm's buffers rotate."""

EXACT = ("folded", "sdpa", "none")
PLAIN = {
    "int8, in plain torch": ("int8", Reading("reference")),
    "latents of half rank, int8, rebuilt": ("latents of half rank, int8", Reading(read="reconstruct")),
}
ARMS = (*EXACT, *codecs(), *PLAIN)


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
Held = dict[str, Tensor]


@dataclass(frozen=True)
class Arm:
    """``attend`` over ``held``; ``meant`` are the keys and values that it stands for."""

    held: Held
    attend: Callable[[Held], Partial]
    meant: tuple[Tensor, Tensor]

    @property
    def bytes_read(self) -> int:
        """What a step reads of the context."""
        return sum(tensor.numel() * tensor.itemsize for tensor in self.held.values())


@pytest.fixture(scope="module")
def race(case: Case, bandwidth: Bandwidth) -> Race:
    """All arms on one case."""
    arms = _arms(case)
    copies: dict[int, Any] = {}
    calls, facts = {}, {}
    for name, arm in arms.items():
        place = id(arm.held)
        if place not in copies:  # exact arms share theirs
            copies[place] = [{key: held.clone() for key, held in arm.held.items()} for _ in range(_count(arm, case))]
        calls[name] = _turning(arm, copies[place])
        facts[name] = _facts(arm, query(case.batch))
    with torch.no_grad():
        times = interleaved(calls, case.rounds)
    for name, arm in arms.items():
        speed = arm.bytes_read / sorted(times[name])[len(times[name]) // 2]
        facts[name] |= {
            "bandwidth": speed,
            "share_of_read": speed / bandwidth.read,
            "share_of_copy": speed / bandwidth.copy,
        }
    return Race(f"attention alone, {case.batch} × {case.tokens:,} tokens", times, ("folded", "none"), facts)


@pytest.mark.parametrize("arm", ARMS)
def test_attention(benchmark: Any, race: Race, arm: str) -> None:
    race.report(benchmark, arm)


def _count(arm: Arm, case: Case) -> int:
    return max(1, -(-case.cold // arm.bytes_read))


def _turning(arm: Arm, copies: list[Held]) -> Callable[[], object]:
    """The arm on the next copy, each time."""
    turn = cycle(copies)
    return lambda: arm.attend(next(turn))


@torch.no_grad()
def _arms(case: Case) -> dict[str, Arm]:
    own, keys, values = query(case.batch), *(states(case.batch, case.tokens, side) for side in ("keys", "values"))
    exact = {"keys": keys, "values": values}
    arms = {
        "folded": Arm(exact, lambda held: _folded(own, held), (keys, values)),
        "sdpa": Arm(exact, lambda held: _sdpa(own, held), (keys, values)),
        "none": Arm(exact, lambda held: _none(own, held), (keys, values)),
    }
    for name, codec in codecs().items():
        arms[name] = _coded(codec, own, codec.encode(keys, values), case.tokens, Reading())
    for name, (base, reading) in PLAIN.items():
        arms[name] = _coded(codecs()[base], own, arms[base].held, case.tokens, reading)
    return arms


def _coded(codec: Any, own: Tensor, stored: Held, tokens: int, reading: Reading) -> Arm:
    return Arm(
        stored,
        lambda held: codec.attend(own, held, tokens, None, SCALING, None, None, reading),
        codec.decode(stored),
    )


def _folded(own: Tensor, held: Held) -> Partial:
    folded = own.view(own.shape[0], KV_HEADS, HEADS // KV_HEADS, -1) * SCALING
    weights = torch.softmax(folded @ held["keys"].transpose(-1, -2), -1)
    return Partial((weights @ held["values"]).view(own.shape), weights, "torch")


def _sdpa(own: Tensor, held: Held) -> Partial:
    output = functional.scaled_dot_product_attention(own, held["keys"], held["values"], scale=SCALING, enable_gqa=True)
    return Partial(output, output, "torch sdpa")


def _none(own: Tensor, held: Held) -> Partial:
    return attend_exact(own, held["keys"], held["values"], SCALING, None, None, True)


@torch.no_grad()
def _facts(arm: Arm, own: Tensor) -> dict[str, Any]:
    """Bytes, and the distance to fp64 attention over the very values that are stored."""
    part = arm.attend(arm.held)
    keys, values = (own_side.double() for own_side in arm.meant)
    truth = partial_attention(own.double(), keys, values, SCALING).output
    error = float((part.output.double() - truth).norm() / truth.norm())
    return {"bytes_read": arm.bytes_read, "error": error, "attention": part.by}
