"""Speed on a clock of our own: every forward pass and fill takes exactly as long as the test says."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from types import SimpleNamespace

import pytest
import torch
from driving import subject, token_ids
from fp64 import one_thread
from torch import Tensor

from kvbench.compressors.compressor import parse
from kvbench.compressors.methods.none import IN_16_BIT
from kvbench.errors import KvbenchError
from kvbench.measure import speed
from kvbench.measure.arms import Arm
from kvbench.measure.memory import walk
from kvbench.measure.parts.speed import SpeedResult
from kvbench.measure.prompt import exact_prompt
from kvbench.measure.results import Bytes
from kvbench.measure.speed import FILLS, SpeedBench

__all__ = ["one_thread"]

PROMPT, STEPS, ROUNDS, WARMUP = 40, 3, 8, 2
SINKS, RECENT, BLOCK = 2, 4, 8
INT4 = f"int:bits=4,sinks={SINKS},recent={RECENT},block={BLOCK}"


@dataclass
class Stopwatch:
    """A clock that only moves when something is done, and the diary of what was done."""

    step_s: Callable[[str, int], float]
    """Seconds that an arm (by name) takes in a round, warm-up rounds included."""
    fill_s: float = 0.5
    prefill_s: float = 2.0
    now: float = 0.0
    encode_s: float = 0.0
    """Seconds more for a step that encodes a block."""
    steps: list[tuple[str, Tensor]] = field(default_factory=list)
    prefills: list[int] = field(default_factory=list)

    def stepped(self, arm: Arm, ids: Tensor) -> None:
        done = sum(name == arm.name for name, _ in self.steps)
        turn = done // STEPS
        self.steps.append((arm.name, ids.clone()))
        encodes = arm.name == INT4 and (PROMPT + done + 1 - SINKS - RECENT) % BLOCK == 0
        self.now += self.step_s(arm.name, turn) + (self.encode_s if encodes else 0)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SpeedResult]:
    """Time ``spec`` on a random model under a stopwatch."""
    forward, fill, prefill = Arm.forward, Arm.fill, speed.exact_prompt
    one = subject("llama", torch.float32)

    def arm_of(spec: str) -> Arm:
        plan = None if spec == "hf" else parse(spec).fit(one.geometry)
        return Arm.of(spec, one.model, one.geometry, plan)

    def run(watch: Stopwatch, spec: str = INT4, seed: int = 0, batch: int = 1, rounds: int = ROUNDS) -> SpeedResult:
        def timed_forward(arm: Arm, ids: Tensor, *rest: object) -> Tensor:
            watch.stepped(arm, ids)
            return forward(arm, ids, *rest)

        def timed_fill(arm: Arm, prompt: object, *rest: int) -> object:
            watch.now += watch.fill_s
            return fill(arm, prompt, *rest)

        def timed_prefill(model: object, geometry: object, ids: Tensor) -> object:
            watch.prefills.append(ids.shape[1])
            watch.now += watch.prefill_s
            return prefill(model, geometry, ids)

        monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: watch.now))
        monkeypatch.setattr(Arm, "forward", timed_forward)
        monkeypatch.setattr(Arm, "fill", timed_fill)
        monkeypatch.setattr(speed, "exact_prompt", timed_prefill)
        none, *others = map(arm_of, ("none", IN_16_BIT, "hf"))
        bench = SpeedBench(none, token_ids(1, PROMPT + (rounds + WARMUP) * STEPS), batch, STEPS, rounds, WARMUP, seed)
        return bench.run(arm_of(spec), [none, *others])

    return run


ARMS = ("none", IN_16_BIT, "hf", INT4)


def seconds(name: str, turn: int) -> float:
    return {"none": 0.2, IN_16_BIT: 0.15, "hf": 0.4, INT4: 0.1}[name]


def test_ratios_are_speed_ups_over_the_baselines(measure: Callable[..., SpeedResult]):
    timed = measure(Stopwatch(seconds))
    assert timed.ratio_to_none == pytest.approx(2) and timed.ratio_to_hf == pytest.approx(4)
    assert timed.ratio_to_16_bit == pytest.approx(1.5) and timed.ratio_to_16_bit_interval is not None
    assert (timed.tpot_s, timed.tpot_p50_s) == pytest.approx((0.1, 0.1)) and timed.tokens_per_s == pytest.approx(10)


def test_drift_that_all_arms_share_cancels(measure: Callable[..., SpeedResult]):
    timed = measure(Stopwatch(lambda name, turn: seconds(name, turn) * 3**turn))
    assert timed.ratio_to_none == pytest.approx(2)
    interval = timed.ratio_to_none_interval
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((2, 2))
    assert timed.tpot_p99_s > 10 * timed.tpot_p50_s


def test_what_now_and_then_takes_long_is_paid_for_by_every_token(measure: Callable[..., SpeedResult]):
    slow = WARMUP + 1
    timed = measure(Stopwatch(lambda name, turn: 0.9 if (name, turn) == (INT4, slow) else seconds(name, turn)))
    assert timed.tpot_s == pytest.approx(0.2) and timed.tpot_p50_s == pytest.approx(0.1)
    assert timed.tokens_per_s == pytest.approx(5) and timed.ratio_to_none == pytest.approx(1)


def test_encoding_has_a_figure_of_its_own(measure: Callable[..., SpeedResult]):
    timed = measure(Stopwatch(seconds, encode_s=0.8))
    assert timed.cycle == BLOCK and timed.tpot_s == pytest.approx(0.2)
    assert timed.tpot_p50_s == pytest.approx(0.1) and timed.encode_s_per_token == pytest.approx(0.1)
    assert timed.ratio_to_none == pytest.approx(1)
    assert measure(Stopwatch(seconds), spec="none").encode_s_per_token is None


def test_steps_that_are_no_whole_cycles_are_refused_before_the_prompt(measure: Callable[..., SpeedResult]):
    watch = Stopwatch(seconds)
    with pytest.raises(
        KvbenchError, match=r"int:bits=4.* encodes every 8 tokens, and 6 rounds of 3 steps .* rounds to 8 "
    ):
        measure(watch, rounds=6)
    assert not watch.prefills


def test_the_timed_steps_have_a_divergence_from_none(measure: Callable[..., SpeedResult]):
    assert measure(Stopwatch(seconds), spec="none").kld_mean == 0
    assert measure(Stopwatch(seconds)).kld_mean > 1e-9
    assert measure(Stopwatch(seconds), batch=2).kld_mean == pytest.approx(
        measure(Stopwatch(seconds)).kld_mean, rel=1e-3
    )


def test_bytes_are_those_of_the_cache_that_is_timed(measure: Callable[..., SpeedResult]):
    one = subject("llama", torch.float32)
    alone = Arm.of(INT4, one.model, one.geometry, parse(INT4).fit(one.geometry))
    with alone.entered():
        cache = alone.fill(
            exact_prompt(one.model, one.geometry, token_ids(1, PROMPT + STEPS * (ROUNDS + WARMUP))[:, :PROMPT])
        )
    timed = measure(Stopwatch(seconds))
    assert timed.allocated == Bytes.of(walk(cache)) and timed.largest_bytes >= timed.allocated.total
    assert measure(Stopwatch(seconds), spec="none").largest_bytes > timed.largest_bytes


def test_warm_up_rounds_do_not_count(measure: Callable[..., SpeedResult]):
    watch = Stopwatch(lambda name, turn: 1000 if turn < WARMUP else seconds(name, turn))
    timed = measure(watch)
    assert len(timed.raw_step_s) == STEPS * ROUNDS and timed.raw_step_s == pytest.approx([0.1] * STEPS * ROUNDS)
    assert timed.ratio_to_none == pytest.approx(2)
    assert Counter(name for name, _ in watch.steps) == dict.fromkeys(ARMS, STEPS * (ROUNDS + WARMUP))


def orders(watch: Stopwatch) -> list[tuple[str, ...]]:
    """The order of the arms, round by round."""
    names = [name for name, _ in watch.steps]
    per_round = len(ARMS) * STEPS
    return [
        tuple(name for name, _ in groupby(names[start : start + per_round]))
        for start in range(0, len(names), per_round)
    ]


def test_arms_take_turns_in_an_order_that_the_seed_shuffles(measure: Callable[..., SpeedResult]):
    runs = []
    for seed in (0, 0, 1):
        watch = Stopwatch(seconds)
        measure(watch, seed=seed)
        runs.append(orders(watch))
    assert all(sorted(turn) == sorted(ARMS) for turn in runs[0])
    assert len(set(runs[0])) > 1, "a fixed order would give one arm the others' warm caches every time"
    assert runs[0] == runs[1] != runs[2]


def test_all_arms_decode_the_same_tokens(measure: Callable[..., SpeedResult]):
    watch = Stopwatch(seconds)
    measure(watch, batch=2)
    by_arm = {
        name: torch.cat([ids for arm_name, ids in watch.steps if arm_name == name], 1) for name in ("none", "hf", INT4)
    }
    assert by_arm["none"].shape == (2, STEPS * (ROUNDS + WARMUP))
    text = token_ids(1, PROMPT + STEPS * (ROUNDS + WARMUP))[:, PROMPT:]
    assert torch.equal(by_arm["none"], text.expand(2, -1)), "what follows the prompt in the document"
    assert torch.equal(by_arm["none"], by_arm["hf"]) and torch.equal(by_arm["none"], by_arm[INT4])


def test_a_baseline_is_not_timed_twice_when_it_is_the_arm_itself(measure: Callable[..., SpeedResult]):
    watch = Stopwatch(seconds)
    timed = measure(watch, spec="none")
    assert {name for name, _ in watch.steps} == {"none", IN_16_BIT, "hf"}
    assert timed.ratio_to_none == 1 and timed.ratio_to_hf == pytest.approx(2)


def test_time_to_first_token_is_prefill_and_compression(measure: Callable[..., SpeedResult]):
    watch = Stopwatch(seconds, fill_s=0.5, prefill_s=2)
    timed = measure(watch)
    assert (timed.prefill_s, timed.compress_s, timed.ttft_s) == pytest.approx((2, 0.5, 2.5))
    assert watch.prefills[-1] == PROMPT and len(watch.prefills) == 2, "one untimed prefill warms up"
    assert (timed.batch, timed.prompt, timed.steps) == (1, PROMPT, STEPS)


def test_rates_count_all_rows(measure: Callable[..., SpeedResult]):
    timed = measure(Stopwatch(seconds), batch=4)
    assert timed.batch == 4 and timed.tpot_s == pytest.approx(0.1) and timed.tokens_per_s == pytest.approx(40)


def test_one_round_has_a_ratio_and_no_interval(measure: Callable[..., SpeedResult]):
    timed = measure(Stopwatch(seconds), spec="hf", rounds=1)
    assert timed.ratio_to_none == pytest.approx(0.5) and timed.ratio_to_none_interval is None


def test_the_prompt_is_prefilled_once_for_all_compressors():
    one = subject("llama", torch.float32)
    none = Arm.of("none", one.model, one.geometry, parse("none").fit(one.geometry))
    bench = SpeedBench(none, token_ids(1, PROMPT + 1), 2, 1, 1, 0, 0)
    assert bench.prompt() is bench.prompt() and bench.prompt().length == PROMPT
    assert FILLS % 2, "a median needs a middle"
    first, second = (bench.run(none, []) for _ in range(2))
    assert first.prefill_s == second.prefill_s > 0 and first.compress_s > 0


def test_the_model_is_stock_afterwards(measure: Callable[..., SpeedResult]):
    one, ids = subject("llama", torch.float32), token_ids(1, 20)
    before = one.model(ids).logits
    measure(Stopwatch(seconds))
    assert torch.equal(one.model(ids).logits, before)
