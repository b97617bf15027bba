"""The benchmarks run, take turns, and say what the tables need. Sizes are tiny and no time is judged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kvbench.measure.turns import timed_in_turns
from kvbench.report.benchmarks import markdown, read_benchmarks

ROOT = Path(__file__).parents[1]


@pytest.fixture
def racing(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import racing

    return racing


def test_every_benchmark_runs_and_its_json_becomes_tables(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "--tiny", f"--benchmark-json={out}", "-q"]
    # pytest-benchmark writes nothing where it believes to be a worker of several.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:]
    groups = {bench["group"]: bench for bench in json.loads(out.read_text())["benchmarks"]}
    assert len(groups) == 13
    text = markdown(read_benchmarks(out))
    assert all(f"### {group}" in text.replace("\\", "") for group in groups)
    assert (
        "% of read" in text
        and "× folded" in text
        and "× hf" in text
        and "% of roofline" in text
        and "% projected" in text
    )


def test_arms_take_turns_in_a_shuffled_order():
    done: list[str] = []

    def arm(name: str) -> Callable[[], None]:
        return lambda: done.append(name)

    times = timed_in_turns({name: arm(name) for name in "abc"}, rounds=8, warmup=2)
    rounds = ["".join(done[start : start + 3]) for start in range(0, len(done), 3)]
    assert len(rounds) == 10 and {"".join(sorted(order)) for order in rounds} == {"abc"} and len(set(rounds)) > 1
    assert {name: len(taken) for name, taken in times.items()} == {"a": 8, "b": 8, "c": 8}


def test_ratios_are_those_of_each_round(racing):
    class Replayer:
        group, extra_info = "", {}

        def pedantic(self, function: Callable[[], None], rounds: int, **_: int) -> None:
            self.seen = []
            for _ in range(rounds):
                start = racing.replayed()
                function()
                self.seen.append(racing.replayed() - start)

    drifting = [1.0, 2.0, 4.0, 8.0]
    race = racing.Race("g", {"slow": [2 * time for time in drifting], "fast": drifting}, ("slow",), {"fast": {"x": 1}})
    benchmark = Replayer()
    race.report(benchmark, "fast")
    assert benchmark.seen == pytest.approx(drifting)
    assert benchmark.extra_info["ratios"]["slow"]["ratio"] == pytest.approx(2) and benchmark.extra_info["x"] == 1


@torch.no_grad()
def test_what_is_timed_is_the_attention_itself(monkeypatch):
    """Kernels' parts are computed when they are read: an arm that only made one was timed as 20 times as fast."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bench_attention

    for arm in bench_attention._arms(bench_attention.Case(2, 128, 1)).values():
        timed = bench_attention._cycling(arm, [arm.stored])()
        assert isinstance(timed, torch.Tensor) and timed.isfinite().all()


def test_the_readme_names_every_file():
    named = set(re.findall(r"^\| `(\w+\.py)`", (ROOT / "benchmarks" / "README.md").read_text(), re.MULTILINE))
    assert named == {path.name for path in (ROOT / "benchmarks").glob("bench_*.py")}
