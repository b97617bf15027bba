"""What the harness itself costs, on a model so small that little else is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from models import TEXT
from racing import Race, replayed

from kvbench.cache.self_test import identity_plan, self_test
from kvbench.compressors.compressor import parse
from kvbench.hardware.environment import provenance
from kvbench.measure.arms import Arm
from kvbench.measure.bench import ModelBench
from kvbench.measure.parts.memory import MemoryWorkload
from kvbench.measure.speed import SpeedBench
from kvbench.measure.turns import timed_in_turns
from kvbench.runs.jsonl import encode_line, read_records
from kvbench.runs.records import Failure, Provenance, Record
from kvbench.runs.store import RunStore
from kvbench.runs.trials import Trial, Workload

pytestmark = pytest.mark.benchmark(timer=replayed)

MODEL = "random:llama?layers=4,hidden=128,heads=4,kv_heads=2,head_dim=32"
LAYERS, PROMPT = 4, 256


@dataclass(frozen=True)
class Case:
    """Times in how many rounds."""

    rounds: int

    def __str__(self) -> str:
        return f"{self.rounds}-rounds"


CASES = {"tiny": [Case(2)], "quick": [Case(40)], "full": [Case(200)]}
STEPS = ("hf", "none", "identity", "int4")
PARTS = (
    *("parse a spec", "hooks on and off", "self-test", "provenance"),
    *("append a record", "read 1,000 records", "turns of a step"),
)


@pytest.fixture(scope="module")
def small() -> ModelBench:
    """The small model."""
    return ModelBench(MODEL)


@pytest.fixture(scope="module")
def steps(case: Case, small: ModelBench) -> Race:
    """A decode step through stock attention, through the hooks, and through a codec that changes nothing."""
    times = _speed_bench(small, case.rounds).interleave(_arms(small))
    rounds = {name: times.rounds(name) for name in STEPS}
    facts = {name: {"attention": times.attention(name)} for name in STEPS}
    return Race(f"decode step of {LAYERS} small layers", rounds, ("hf", "none"), facts)


@pytest.fixture(scope="module")
def parts(case: Case, small: ModelBench, tmp_path_factory: pytest.TempPathFactory) -> Race:
    """Everything around a measurement."""
    calls = _calls(small, tmp_path_factory.mktemp("store"))
    times = timed_in_turns(calls, case.rounds)
    return Race("around a measurement", times | {"turns of a step": _turns(small, case.rounds)})


@pytest.mark.parametrize("arm", STEPS)
def test_step(benchmark: Any, steps: Race, arm: str) -> None:
    steps.report(benchmark, arm)


@pytest.mark.parametrize("arm", PARTS)
def test_part(benchmark: Any, parts: Race, arm: str) -> None:
    parts.report(benchmark, arm)


def _arms(small: ModelBench) -> dict[str, Arm]:
    model, geometry = small.loaded.model, small.geometry
    plans = {
        "hf": None,
        "none": parse("none").fit(geometry),
        "identity": identity_plan(geometry, "after"),
        "int4": parse("int:bits=4").fit(geometry),
    }
    return {name: Arm.of(name, model, geometry, plan) for name, plan in plans.items()}


def _speed_bench(small: ModelBench, rounds: int) -> SpeedBench:
    ids = small.evaluation_windows(TEXT, PROMPT + 4 * (rounds + 1), 1).ids
    return SpeedBench(_arms(small)["none"], ids, batch=1, steps=4, rounds=rounds, warmup=1, seed=0)


def _turns(small: ModelBench, rounds: int) -> list[float]:
    """What taking turns adds to a step, round by round: hooks on and off, clocks, choosing the order."""
    speed, arms, added = _speed_bench(small, 1), _arms(small), []
    with torch.no_grad():
        for _ in range(max(2, rounds // 10)):
            speed.warmup = 0
            start = time.perf_counter()
            for arm in arms.values():
                with arm.entered():
                    arm.fill(speed.prompt())
            filling = time.perf_counter() - start
            start = time.perf_counter()
            times = speed.interleave(arms)
            whole = time.perf_counter() - start
            stepping = [step for turns in times.steps.values() for turn in turns for step in turn]
            added.append(max(0.0, whole - filling - sum(stepping)) / len(stepping))
    return added


def _calls(small: ModelBench, folder: Path) -> dict[str, Callable[[], object]]:
    model, geometry = small.loaded.model, small.geometry
    none = _arms(small)["none"]
    store, record = RunStore(folder), made_to_be_written(small)
    store.plan([record.trial], "harness")
    many = folder / "many.jsonl"
    many.write_bytes(encode_line(record) * 1000)

    def hooks() -> None:
        with none.entered():
            pass

    return {
        "parse a spec": lambda: parse("pca:rank=0.5,heads=each,frame=after+int:bits=8"),
        "hooks on and off": hooks,
        "self-test": lambda: self_test(model, geometry, "before"),
        "provenance": lambda: provenance("cpu", datetime.now(UTC)),
        "append a record": lambda: store.append(record),
        "read 1,000 records": lambda: read_records(many),
    }


def made_to_be_written(small: ModelBench) -> Record:
    """A record without a result."""
    trial = Trial(
        model=MODEL,
        weights_sha256=small.loaded.weights_sha256,
        compressor="none",
        code="",
        workload=Workload(name="harness", memory=MemoryWorkload()),
        dtype="float32",
        device="cpu",
        threads=torch.get_num_threads(),
        seed=0,
    )
    where = Provenance(**provenance("cpu", datetime.now(UTC)))
    return Record.of(trial, "failed", where, failure=Failure(type="None", message="made to be written"))
