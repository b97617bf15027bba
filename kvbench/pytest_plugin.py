"""For the tests of other projects: measure a compressor, require what it must keep, gate it against a baseline.

    def test_small_and_faithful(kvbench_measure):
        kvbench_measure("mine:bits=4").require("bits < 7 and kld < 2e-2")

    def test_nothing_got_worse(kvbench_gate):
        kvbench_gate("mine:bits=4")

pytest loads this module wherever kvbench is installed, so that nothing heavy is imported before a fixture is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kvbench.runs.records import Record

SUITE, MODEL = "pytest", "random:llama"
BASELINE = "kvbench-baseline.json"


@dataclass(frozen=True)
class Measured:
    """A record, and its values by the names that ``kvbench records --fields`` lists."""

    record: Record
    values: Mapping[str, Any]

    def require(self, condition: str) -> Measured:
        """Fail unless ``condition`` holds, such as ``"bits < 5 and kld < 0.01 and over_none > 0.9"``.

        Raises:
            KvbenchError: it cannot be read, or names what was not measured.
        """
        from kvbench.runs.conditions import Condition

        measured = {name: value for name, value in self.values.items() if value is not None}
        if not Condition(condition, measured).holds(measured):
            named = {name: value for name, value in measured.items() if name in condition.replace(".", " ").split()}
            values = ", ".join(f"{name} = {value:.4g}" for name, value in named.items() if isinstance(value, float))
            pytest.fail(f"{self.record.trial.key}: not {condition}: {values or self.record.status}", pytrace=False)
        return self


Measure = Callable[..., Measured]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options and the setting of pytest."""
    group = parser.getgroup("kvbench", "KV-cache compressors")
    group.addoption("--kvbench-update", action="store_true", help="Write what kvbench_gate measures as its baseline.")
    parser.addini("kvbench_baseline", "Baseline of kvbench_gate, from the root folder on.", default=BASELINE)


@pytest.fixture(scope="session")
def kvbench_measure(tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """``kvbench_measure(compressor, model="random:llama", suite="pytest")``: the compressor under the suite's workload.

    ``model`` is whatever ``kvbench run --model`` takes, a folder of ``save_pretrained`` among it; ``suite`` a name or a
    .toml file with one workload. The same is measured once a session. What fails to be measured fails the test.
    """
    from kvbench.runs.measuring import Measurer

    measurer = Measurer(lambda *_: None)
    made: dict[tuple[str, str, str], Measured] = {}

    def measure(compressor: str, *, model: str = MODEL, suite: str | Path = SUITE) -> Measured:
        key = (compressor, model, str(suite))
        if key not in made:
            made[key] = _measured(measurer, *key)
        return made[key]

    return measure


@pytest.fixture(scope="session")
def kvbench_gate(request: pytest.FixtureRequest, kvbench_measure: Measure) -> Callable[..., None]:
    """``kvbench_gate(compressor, …)``: measured as by ``kvbench_measure``, and the same as in the baseline.

    ``pytest --kvbench-update`` writes the baseline from what the session measures. Bytes are compared exactly, KLD and
    perplexity within the tolerances that stand in the file (:mod:`kvbench.gate.baseline`).
    """
    from kvbench.gate.baseline import read_baseline, write_baseline
    from kvbench.gate.gate import gate

    config = request.config
    path = config.rootpath / config.getini("kvbench_baseline")
    records: list[Record] = []

    def check(compressor: str, **options: Any) -> None:
        record = kvbench_measure(compressor, **options).record
        if config.getoption("kvbench_update"):
            records.append(record)
            write_baseline(records, path)
            return
        baseline = read_baseline(path)
        if record.trial.key not in baseline.entries:
            pytest.fail(f"{path} has no {record.trial.key}; run pytest --kvbench-update", pytrace=False)
        entry = {record.trial.key: baseline.entries[record.trial.key]}
        report = gate([record], baseline.model_copy(update={"entries": entry}))
        if report.exit_code:
            pytest.fail(f"{report.render()}if that is meant: pytest --kvbench-update", pytrace=False)

    return check


def _measured(measurer: Any, compressor: str, model: str, suite: str) -> Measured:
    from kvbench.runs.fields import fields_of
    from kvbench.runs.suites import load_suite

    trials = measurer.plan(load_suite(suite).narrowed(model=model, compressors=[compressor]))
    if len(trials) != 1:
        pytest.fail(f"suite {suite} has {len(trials)} workloads; kvbench_measure takes one with one", pytrace=False)
    record = measurer.record(trials[0])
    if record.status == "interrupted":
        raise KeyboardInterrupt
    if record.failure is not None:
        pytest.fail(f"{record.trial.key} {record.status}: {record.failure.message}", pytrace=False)
    return Measured(record, fields_of(record))
