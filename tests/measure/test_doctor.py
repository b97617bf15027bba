import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from kvbench.hardware.bandwidth import Bandwidth
from kvbench.measure import doctor
from kvbench.measure.noise import Noise, measure_noise
from kvbench.measure.statistics import PairedRatio

QUIET = Noise(PairedRatio(1.001, 0.998, 1.004, 31), variation=0.01)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A quiet machine, and a function that changes what the doctor finds on it."""
    found = {"noise": QUIET, "load": 0.5}
    real = doctor.provenance

    def provenance(device, started):
        return real(device, started) | {"load_average": (found["load"], 0.0, 0.0), "cores": 2}

    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "not" / "made" / "yet"))
    monkeypatch.setattr(doctor, "provenance", provenance)
    monkeypatch.setattr(doctor, "measure_noise", lambda: found["noise"])
    monkeypatch.setattr(doctor, "measure_bandwidth", lambda: Bandwidth(20e9, 40e9, 18e9, 36e9, 2))
    return found.update


def text(diagnosis):
    console = Console(width=160, no_color=True)
    with console.capture() as capture:
        console.print(doctor.render(diagnosis))
    return capture.get()


def test_a_quiet_machine_is_fit(machine):
    diagnosis = doctor.diagnose()
    assert diagnosis.warnings == diagnosis.problems == ()
    assert "fit to measure on" in text(diagnosis)


def test_the_table_names_what_was_measured(machine):
    shown = text(doctor.diagnose())
    assert "20.0 GB/s with 1 thread, 40.0 GB/s with 2" in shown
    assert "ratio 1.0010 [0.9980, 1.0040]" in shown
    assert torch.__version__ in shown


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"load": 2.5}, "load average 2.5 is above the 2 usable cores"),
        ({"noise": replace(QUIET, variation=0.05)}, "vary by 5.0%"),
        ({"noise": replace(QUIET, ratio=PairedRatio(1.02, 1.01, 1.03, 31))}, "differs from itself"),
        ({"noise": replace(QUIET, ratio=PairedRatio(0.98, 0.97, 0.99, 31))}, "differs from itself"),
    ],
)
def test_each_doubt_is_one_warning(machine, change, warning):
    machine(change)
    diagnosis = doctor.diagnose()
    assert len(diagnosis.warnings) == 1 and warning in diagnosis.warnings[0]
    assert diagnosis.problems == ()
    assert f"warning: {diagnosis.warnings[0]}" in text(diagnosis)


def test_an_unusable_cache_folder_is_a_problem(machine, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "file" / "kvbench"))
    diagnosis = doctor.diagnose()
    assert "cannot be written; point KVBENCH_CACHE" in diagnosis.problems[0]
    assert "problem: cache folder" in text(diagnosis)


def test_diagnosing_makes_no_folder(machine, tmp_path):
    doctor.diagnose()
    assert list(tmp_path.iterdir()) == []


def test_json_holds_everything(machine):
    data = json.loads(doctor.to_json(doctor.diagnose()))
    assert data["noise"]["ratio"] == {"ratio": 1.001, "low": 0.998, "high": 1.004, "n": 31}
    assert data["bandwidth"]["read"] == 40e9
    assert data["environment"]["started"] <= data["environment"]["finished"]


def test_identical_work_is_compared_with_itself():
    noise = measure_noise(rounds=5)
    assert noise.ratio.n == 5
    assert 0.2 < noise.ratio.ratio < 5  # even a crowded machine
    assert noise.variation >= 0
