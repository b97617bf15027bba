"""Capacity: the batch is the largest that the budget holds, by bytes walked from the caches that were timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from fp64 import one_thread
from kept_kernels import cache_with_kernels
from pydantic import ValidationError
from transformers import Cache

from kvbench.cache.cache import CacheBytes, CompressedCache
from kvbench.compressors.compressor import parse
from kvbench.compressors.methods.none import IN_16_BIT
from kvbench.errors import KvbenchError
from kvbench.measure import capacity as module
from kvbench.measure.bench import CalibrationSource, ModelBench
from kvbench.measure.capacity import CapacityBench, RowBytes
from kvbench.measure.memory import walk
from kvbench.measure.parts import Inputs
from kvbench.measure.parts.capacity import CapacityResult, CapacityWorkload
from kvbench.measure.prompt import exact_prompt

__all__ = ["one_thread"]

INPUTS = Inputs("pydoc", "test", CalibrationSource("pydoc", 2, 64))
SMALL = CapacityWorkload(budget="256KiB", prompt=100, steps=4, rounds=4, warmup=0)
SPANS = "recent=16,block=8"
INT4 = f"int:bits=4,{SPANS}"
SPECS = (
    "none",
    "hf",
    INT4,
    f"kivi:bits=2,group=8,{SPANS}",
    f"kvtc:bits=3,{SPANS}",
    f"snapkv:budget=0.5+int:bits=8,{SPANS}",
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelBench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVBENCH_CACHE", cache_with_kernels(tmp_path_factory.mktemp("cache")))
        yield ModelBench("random:llama")


def measured(bench: ModelBench, spec: str, **changes: object) -> CapacityResult:
    settings = CapacityWorkload.model_validate(SMALL.model_dump() | changes)
    return settings.measure(bench, bench.arm(parse(spec), INPUTS.calibration), INPUTS)


def most_walked(bench: ModelBench, spec: str, batch: int) -> int:
    """The most bytes of a real cache of ``batch`` rows after the prompt and any step of the workload, with bases."""
    arm = bench.arm(parse(spec), INPUTS.calibration)
    ids = bench.prompt_ids("pydoc", SMALL.tokens, "test").expand(batch, -1)
    prompt = exact_prompt(arm.model, arm.geometry, ids[:1, : SMALL.prompt])
    with arm.entered():
        cache = arm.fill(prompt, batch)
        totals = [walk(cache).total]
        for token in ids[:, SMALL.prompt :].split(1, 1):
            arm.forward(token, cache)
            totals.append(walk(cache).total)
    return max(totals) + (arm.plan.model_level_bytes() if arm.plan else 0)


@pytest.mark.parametrize("spec", SPECS)
def test_the_batch_is_the_largest_that_the_budget_holds(bench: ModelBench, spec: str):
    result = measured(bench, spec)
    assert result.batch > 1 and not result.capped and result.budget == 256 * 1024
    assert result.allocated.total <= result.largest_bytes
    assert result.taken_bytes == most_walked(bench, spec, result.batch) <= result.budget
    assert result.one_more_bytes == most_walked(bench, spec, result.batch + 1) > result.budget


def test_baselines_are_measured_at_batches_of_their_own(bench: ModelBench):
    result = measured(bench, INT4)
    rows = {spec: measured(bench, spec).batch for spec in ("none", IN_16_BIT, "hf")}
    assert {each.name: each.batch for each in result.baselines} == rows
    assert result.batch > max(rows.values())
    for each in result.baselines:
        assert each.largest_bytes <= result.budget
        assert each.ratio == pytest.approx(result.tokens_per_s / each.tokens_per_s)


def test_rates_are_of_all_rows(bench: ModelBench):
    result = measured(bench, INT4)
    assert len(result.raw_step_s) == SMALL.steps * SMALL.rounds
    assert result.step_s == pytest.approx(sum(result.raw_step_s) / len(result.raw_step_s))
    assert result.tokens_per_s == pytest.approx(result.batch / result.step_s)
    assert result.tokens_per_s_per_gib == pytest.approx(result.tokens_per_s * 2**30 / result.taken_bytes)
    assert result.attention == "numba int" and result.kld_mean is not None and result.kld_mean > 0


def test_a_baseline_is_itself(bench: ModelBench):
    none = measured(bench, "none").over("none")
    assert none is not None and none.ratio == 1


def test_a_limit_on_the_batch_is_told_where_it_comes_first(bench: ModelBench):
    largest = measured(bench, INT4).batch
    capped = measured(bench, INT4, max_batch=2)
    assert (capped.batch, capped.capped) == (2, True)
    assert not measured(bench, INT4, max_batch=largest).capped, "the budget holds no more either"


def test_a_budget_below_a_row_is_told_with_one_that_works(bench: ModelBench):
    with pytest.raises(
        KvbenchError, match=r'none takes .* for one row of 100 tokens.* set budget to "\d+KiB"'
    ) as error:
        measured(bench, "none", budget=1024)
    assert "\n" not in str(error.value)
    enough = str(error.value).partition('set budget to "')[2].partition('"')[0]
    assert measured(bench, "none", budget=enough).batch == 1


def test_a_baseline_of_which_no_row_fits_has_no_ratio(bench: ModelBench):
    none, packed = (most_walked(bench, spec, 1) for spec in ("none", INT4))
    assert packed < none
    result = measured(bench, INT4, budget=none - 1)
    assert result.over("none") is None


def test_batches_that_the_machine_cannot_hold_are_refused(bench: ModelBench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "available_memory", lambda device: 1_000_000)
    with pytest.raises(KvbenchError, match="lower budget or set max_batch") as error:
        measured(bench, INT4)
    assert "\n" not in str(error.value)


def test_a_cache_that_takes_more_than_its_rows_is_measured_with_fewer(
    bench: ModelBench, monkeypatch: pytest.MonkeyPatch
):
    """As a cache would whose buffers for many rows have more headroom."""
    usual = measured(bench, "hf", budget="512KiB").batch

    def padded(cache: Cache) -> CacheBytes:
        size = walk(cache)
        crowded = not isinstance(cache, CompressedCache) and cache.layers[0].keys.shape[0] > 2
        return replace(size, workspace=size.total // 4) if crowded else size

    monkeypatch.setattr(module, "walk", padded)
    settings = CapacityWorkload.model_validate(
        SMALL.model_dump() | {"budget": "512KiB", "warmup": 1}
    )  # a document of its own
    result = settings.measure(bench, bench.arm(parse("hf"), INPUTS.calibration), INPUTS)
    assert result.batch < usual and result.taken_bytes <= result.budget


def test_rows_take_the_difference_of_two_caches():
    sizes = RowBytes(one=(110, 130, 120), two=(210, 250, 230), bases=50)
    assert [sizes.most(batch) for batch in (1, 2, 3)] == [180, 300, 420]
    assert [sizes.largest_batch(budget) for budget in (0, 179, 180, 299, 300, 420)] == [0, 0, 1, 1, 2, 3]


def test_what_is_learned_of_an_arm_serves_the_next(bench: ModelBench, monkeypatch: pytest.MonkeyPatch):
    made: list[object] = []
    real = CapacityBench.__init__
    monkeypatch.setattr(CapacityBench, "__init__", lambda *given, **named: made.append(given) or real(*given, **named))
    for spec in ("none", INT4):
        measured(bench, spec, budget="250KiB")
    assert len(made) == 1


@pytest.mark.parametrize(("text", "count"), [("512MiB", 2**29), ("1 GiB", 2**30), ("1e6", 10**6), (4096, 4096)])
def test_budgets_are_read_with_units(text: object, count: int):
    assert CapacityWorkload(budget=text).budget == count


@pytest.mark.parametrize("text", ["", "much", "1 GiBs", "-1GiB", "0", 0, "1.2.3MiB"])
def test_budgets_that_are_none_are_refused(text: object):
    with pytest.raises(ValidationError):
        CapacityWorkload(budget=text)


def test_steps_that_are_no_whole_cycles_are_refused_by_name(bench: ModelBench):
    with pytest.raises(KvbenchError, match=r"under \[workload.capacity\]"):
        measured(bench, INT4, rounds=3)


def test_settings_are_told_in_words():
    assert CapacityWorkload().in_words == "caches within 1 GiB, prompt 4,096, 4 steps × 8 rounds"
    assert "at most 8 rows" in CapacityWorkload(max_batch=8).in_words
