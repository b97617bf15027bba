"""The script that lets the gates run against themselves: what it puts in, and what it makes of their exit codes."""

from __future__ import annotations

import ast
import json
import time
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def selftest(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gate_selftest

    return gate_selftest


def test_only_arms_of_kvbenchs_own_take_longer(selftest: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arms = (selftest.slowed(tmp_path / "slow", 9) / "kvbench" / "measure" / "arms.py").read_text()
    ast.parse(arms)
    put_in = arms.removeprefix((ROOT / "kvbench" / "measure" / "arms.py").read_text())

    class Arm:
        plan: object

        def forward(self, ids: int) -> int:
            return ids + 1

    exec(put_in, {"Arm": Arm})
    looks = {}
    for name, plan in (("own", object()), ("stock", None)):
        clock = count()
        monkeypatch.setattr(time, "perf_counter", lambda clock=clock: next(clock))
        arm = Arm()
        arm.plan = plan
        assert arm.forward(1) == 2
        looks[name] = next(clock)
    assert looks["stock"] < 3 and looks["own"] > 9, "nine times as long, on a clock that moves when it is read"


@pytest.mark.parametrize(
    ("on_itself", "on_the_slower", "ended"), [(0, 1, 0), (1, 1, 1), (0, 0, 1), (3, 1, 0), (0, 3, 1)]
)
def test_alarms_on_nothing_and_silence_on_a_slowdown_fail(
    selftest: ModuleType, monkeypatch: pytest.MonkeyPatch, on_itself: int, on_the_slower: int, ended: int
):
    def kvbench(*arguments: object) -> tuple[int, str]:
        head = arguments[list(arguments).index("--head") + 1]
        code = on_itself if head == selftest.ROOT else on_the_slower
        return code, json.dumps({"rows": [{"verdict": "slower" if code == 1 else "same"}]})

    monkeypatch.setattr(selftest, "_kvbench", kvbench)
    assert selftest.main(["times", "--runs", "2"]) == ended


def test_values_are_gated_by_the_committed_baseline_and_fitted_anew_with_every_arithmetic(
    selftest: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for name in ("wheels", "calibration", "baselines"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    called, computed = [], []

    def kvbench(*arguments: object, **environment: str) -> tuple[int, str]:
        called.append(arguments[0])
        if environment:
            folder = Path(environment.pop("KVBENCH_CACHE"))
            assert [each.name for each in folder.iterdir()] == ["wheels"]
            computed.append(environment)
        return 0, ""

    monkeypatch.setattr(selftest, "_kvbench", kvbench)
    runs = len(selftest.ARITHMETIC) + 1
    assert selftest.main(["values", "--runs", str(runs)]) == 0
    assert called == ["run", "gate"] * runs
    assert computed == [*selftest.ARITHMETIC.values(), {}], "all, and from the beginning"
    assert selftest.BASELINE.exists()
