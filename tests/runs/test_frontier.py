"""Suites solved for equal bytes."""

from __future__ import annotations

import pytest

from kvbench.compressors.equal_bytes import Solver
from kvbench.errors import KvbenchError
from kvbench.runs.frontier import solve_suite
from kvbench.runs.runner import Runner
from kvbench.runs.store import RunStore
from kvbench.runs.suites import Suite, load_suite, parse_suite

SUITE = """
name = "f"
models = ["random:llama"]
compressors = ["none"]
exact = "float16"
[[workload]]
name = "speed-first"
[workload.quality]
documents = 2
length = 64
prefix = 32
block = 32
calibration_windows = 2
calibration_length = 64
[[workload]]
name = "sized"
[workload.memory]
prompt = 512
peaks = false
"""


class Silent:
    """Hears nothing."""

    def __getattr__(self, name: str):
        return lambda *_: None


@pytest.fixture
def runner(tmp_path) -> Runner:
    return Runner(RunStore(tmp_path), Silent(), threads=1)


def solved(runner: Runner, methods: str, at: str, text: str = SUITE) -> tuple[Suite, list[str]]:
    return solve_suite(runner, parse_suite(text, "f"), methods, at)


def test_what_cannot_take_a_size_stands_at_its_nearest_once(runner):
    suite, left_out = solved(runner, "kivi:group=32,int:group=32", "bits=1,2,6")
    assert left_out == []
    assert suite.compressors[0] == "none" and len(suite.compressors) == 5
    assert all("exact=float16" in spec for spec in suite.compressors[1:])
    kivi, int_ = (spec for spec in suite.compressors if "bits=2" in spec)
    assert suite.solved_for[kivi] == (1.0, 2.0), "one row, for both"
    assert suite.solved_for[int_] == (1.0, 2.0)


def test_records_say_what_their_spec_was_solved_for(runner):
    suite, _ = solved(runner, "int:group=32", "bits=2,6")
    targets = {record.trial.compressor: record.solved_for for record in runner.run(suite)}
    assert targets["none"] == ()
    assert sorted(bits for spec, bits in targets.items() if spec != "none") == [(2.0,), (6.0,)]


def test_a_method_that_fits_no_size_of_this_model_is_left_out_with_the_reason(runner):
    suite, left_out = solved(runner, "int,mla", "bits=6")
    assert len(suite.compressors) == 2 and len(left_out) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("[workload.memory]\nprompt = 512\npeaks = false", "[workload.speed]"), "a memory part"),
        (('["random:llama"]', '["random:llama", "random:gpt2"]'), "one model"),
    ],
)
def test_a_suite_that_says_no_size_is_refused(runner, change, reason):
    with pytest.raises(KvbenchError, match=reason):
        solved(runner, "int", "bits=3", SUITE.replace(*change))


def test_the_built_in_suite_stores_exact_tokens_of_all_methods_alike_in_16_bit():
    assert load_suite("frontier").exact == "float16"


def test_what_was_solved_once_is_kept(runner, monkeypatch):
    suite, _ = solved(runner, "int:group=32", "bits=4")

    def forbidden(*_):
        raise AssertionError("solved again")

    monkeypatch.setattr(Solver, "nearest", forbidden)
    again, _ = solved(runner, "int:group=32", "bits=4")
    assert again == suite
    with pytest.raises(AssertionError, match="solved again"):
        solved(runner, "int:group=32", "bits=5.37")
