import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from kvbench.cli.doctor import render
from kvbench.hardware.bandwidth import Bandwidth
from kvbench.measure import doctor, kernel_state
from kvbench.measure.kernel_state import KernelState
from kvbench.measure.noise import Noise, measure_noise
from kvbench.measure.statistics import PairedRatio

READY = KernelState("cpu", "numba VNNI", None, True, 0.82)
QUIET = Noise(PairedRatio(1.001, 0.998, 1.004, 31), variation=0.01)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A quiet machine, and a function that changes what the doctor finds on it."""
    settings = {"noise": QUIET, "load": 0.5, "kernels": (READY,)}
    real = doctor.provenance

    def provenance(device, started):
        return real(device, started) | {"load_average": (settings["load"], 0.0, 0.0), "cores": 2}

    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "not" / "made" / "yet"))
    monkeypatch.setattr(doctor, "provenance", provenance)
    monkeypatch.setattr(doctor, "measure_noise", lambda: settings["noise"])
    monkeypatch.setattr(doctor, "kernel_states", lambda: settings["kernels"])
    monkeypatch.setattr(doctor, "measure_bandwidth", lambda: Bandwidth(20e9, 40e9, 18e9, 36e9, 2))
    return settings.update


def text(diagnosis):
    console = Console(width=160, no_color=True)
    with console.capture() as capture:
        console.print(render(diagnosis))
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
    assert "numba VNNI, loaded from the disk cache in 0.8 s" in shown


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"load": 2.5}, "load average 2.5 is above the 2 usable cores"),
        ({"noise": replace(QUIET, variation=0.05)}, "vary by 5.0%"),
        ({"noise": replace(QUIET, ratio=PairedRatio(1.02, 1.01, 1.03, 31))}, "differs from itself"),
        ({"noise": replace(QUIET, ratio=PairedRatio(0.98, 0.97, 0.99, 31))}, "differs from itself"),
        ({"kernels": (KernelState("cpu", None, "no numba", None, 0.0),)}, "no decode kernels for cpu (no numba)"),
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
    assert data["noise"]["ratio"] == {"ratio": 1.001, "low": 0.998, "high": 1.004, "n": 31, "method": ""}
    assert data["bandwidth"]["read"] == 40e9
    assert data["environment"]["started"] <= data["environment"]["finished"]


def test_every_device_says_what_attends():
    (state, *_) = kernel_state.kernel_states()
    assert state.device == "cpu" and state.ready_s > 0
    assert (state.implementation is None) == (state.missing is not None) == (state.cached is None)
    assert kernel_state.kernel_states()[0].implementation == state.implementation


def test_missing_kernels_are_told_once_and_without_a_warning(monkeypatch, recwarn):
    monkeypatch.setattr(kernel_state, "warm_up", lambda device: None)
    monkeypatch.setattr(kernel_state, "kernels_for", lambda device: None)
    monkeypatch.setattr(kernel_state, "missing", lambda device: "no numba")
    assert str(kernel_state.kernel_states()[0]) == "none (no numba), plain torch attends"
    assert not recwarn.list


def test_identical_work_is_compared_with_itself():
    noise = measure_noise(rounds=5)
    assert noise.ratio.n == 5
    assert 0.2 < noise.ratio.ratio < 5  # even a crowded machine
    assert noise.variation >= 0
