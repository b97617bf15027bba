"""Fitting to a target: what is promised is allocated, what is saved runs again, what was measured is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fp64 import one_thread
from kept_kernels import cache_with_kernels
from pydantic import ValidationError

import kvbench
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.measure.bench import CalibrationSource, ModelBench
from kvbench.measure.parts import Inputs
from kvbench.measure.parts.memory import MemoryWorkload
from kvbench.measure.parts.quality import QualityWorkload
from kvbench.measure.quality import QualityBench
from kvbench.runs.fit import FIT, PROBES, FitRequest, Fitter, default_folder
from kvbench.runs.targets import parse_target
from kvbench.texts.windows import windows

__all__ = ["one_thread"]

SMALL = {"tokens": 256, "text": "pydoc", "windows": 2, "length": 128, "documents": 1}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> ModelBench:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVBENCH_CACHE", cache_with_kernels(tmp_path_factory.mktemp("cache")))
        yield ModelBench("random:llama")


def fit(bench: ModelBench, folder: Path, target: str, method: str = "kvtc", **changes: object) -> Fitter:
    return Fitter(bench, FitRequest.of(bench, method, parse_target(target), **(SMALL | changes)), folder)


@pytest.mark.parametrize(
    ("text", "quantity", "value"),
    [("bits=3", "bits", 3), (" kld = 2e-2", "kld", 0.02), ("bytes=3MiB", "bytes", 3 * 2**20), ("bytes=5", "bytes", 5)],
)
def test_targets_are_read(text: str, quantity: str, value: float) -> None:
    target = parse_target(text)
    assert (target.quantity, target.value) == (quantity, value) and parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text", ["", "bits", "bits=", "bits=-1", "bits=0", "bits=3MiB", "bytes=3MeB", "kld=1e999", "k=1"]
)
def test_unreadable_targets_are_refused(text: str) -> None:
    with pytest.raises(KvbenchError, match=r"write bits=3 .* bytes=3MiB .* or kld=0\.02"):
        parse_target(text)


@pytest.mark.parametrize("target", ["bits=3", "bytes=18000"])
def test_bits_and_bytes_are_really_allocated(bench: ModelBench, tmp_path: Path, target: str) -> None:
    fitted = fit(bench, tmp_path, target).run()
    assert fitted.measured_bits == pytest.approx(fitted.predicted_bits, rel=0.01)
    assert fitted.measured_bits == pytest.approx(8 * fitted.measured_bytes / bench.geometry.elements(256))
    wanted = fitted.request.target
    assert (fitted.measured_bits if wanted.quantity == "bits" else fitted.measured_bytes) == pytest.approx(
        wanted.value, rel=0.02
    )
    assert [side.layer for side in fitted.allocation][::2] == [layer.layer for layer in bench.geometry.compressible]
    assert {side.side for side in fitted.allocation} == {"keys", "values"} and fitted.kld is None


def test_what_was_saved_is_the_same_compressor_everywhere(bench: ModelBench, tmp_path: Path) -> None:
    fitted = fit(bench, tmp_path, "bits=3").run()
    source = CalibrationSource("pydoc", 2, 128)
    arms = [bench.arm(parse(spec), source) for spec in (fitted.spec, f"saved:path={tmp_path}")]
    inputs = Inputs("pydoc", "test", source)
    counted = MemoryWorkload(prompt=256, steps=0, peaks=False)
    memory = [counted.measure(bench, arm, inputs).allocated for arm in arms]
    scored = QualityWorkload(text="pydoc", documents=1, length=256, prefix=64, block=64)
    quality = [scored.measure(bench, arm, inputs).kld_mean for arm in arms]
    assert memory[0] == memory[1] and quality[0] == quality[1]
    with kvbench.compress(bench.loaded, f"saved:path={tmp_path}") as compressed:
        assert compressed.plan.spans == parse(fitted.spec).spans


def test_a_kld_is_measured_and_met(bench: ModelBench, tmp_path: Path) -> None:
    goal = fit(bench, tmp_path / "probe", "bits=3").run()
    quality = fit(bench, tmp_path / "x", "kld=1")._documents()
    target = quality.score(bench.arm(parse(goal.spec), CalibrationSource("pydoc", 2, 128))).kld_mean
    fitted = fit(bench, tmp_path / "kld", f"kld={target:.3e}", "kvtc:recent=0,block=8").run()
    assert fitted.kld is not None and 0.5 * target < fitted.kld <= target * 1.001
    assert {"kvtc:bits=4,recent=0,block=8", fitted.spec} <= {probe.spec for probe in fitted.probes}


def test_a_search_sees_development_documents_only(bench: ModelBench, tmp_path: Path) -> None:
    ids = fit(bench, tmp_path, "kld=1", documents=3)._documents().ids
    assert torch.equal(ids, windows("pydoc", "development", bench.loaded.tokenizer, 256, 3).ids)


def test_a_finished_fit_is_only_read(bench: ModelBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = fit(bench, tmp_path, "bits=3").run()
    monkeypatch.setattr(ModelBench, "fit", lambda *_: pytest.fail("fitted again"))
    assert fit(bench, tmp_path, "bits=3").run() == fitted
    for other in (fit(bench, tmp_path, "bits=2"), fit(bench, tmp_path, "bits=3", tokens=128)):
        with pytest.raises(KvbenchError, match=r"holds another fit \(kvtc for bits=3 on random:llama at 256"):
            other.run()


def test_an_interrupted_search_goes_on(bench: ModelBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[str] = []
    real = QualityBench.score

    def score(self: QualityBench, arm: object) -> object:
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(arm.name)
        return real(self, arm)

    with monkeypatch.context() as patch:
        patch.setattr(QualityBench, "score", score)
        with pytest.raises(KeyboardInterrupt):
            fit(bench, tmp_path, "kld=1e-5").run()
    assert not (tmp_path / FIT).exists() and len(json.loads((tmp_path / PROBES).read_text())["probes"]) == 2
    monkeypatch.setattr(QualityBench, "score", lambda self, arm: scored.append(arm.name) or real(self, arm))
    fitted = fit(bench, tmp_path, "kld=1e-5").run()
    assert len(scored) == len(set(scored)) == len(fitted.probes), "a setting was measured twice"


@pytest.mark.parametrize(
    ("method", "target", "reason"),
    [
        ("kvtc", "bits=99", "kvtc cannot take 99 bits per element at 256 tokens; the nearest is"),
        ("kvtc", "bytes=10", "10 bytes are .* bits per element: kvtc cannot take"),
        ("kvtc:bits=3", "kld=0.1", "leaves nothing to search"),
        ("none", "bits=3", "none is a baseline: there is nothing to fit"),
        ("hf", "kld=1", "hf is a baseline"),
        ("kvtcc", "bits=3", "did you mean 'kvtc'"),
        ("kivi", "kld=1e-30", "kivi does not get down to a KLD of 1e-30; the nearest is"),
    ],
)
def test_what_cannot_be_reached_is_one_line(
    bench: ModelBench, tmp_path: Path, method: str, target: str, reason: str
) -> None:
    with pytest.raises(KvbenchError, match=reason):
        fit(bench, tmp_path / "f", target, method).run()
    assert not (tmp_path / "f" / FIT).exists()


def test_folders_that_no_spec_can_name_are_refused_first(bench: ModelBench, tmp_path: Path) -> None:
    with pytest.raises(KvbenchError, match=r"must hold no '\+' and no ','"):
        fit(bench, tmp_path / "a+b", "bits=3").run()
    assert not (tmp_path / "a+b").exists()


def test_damaged_results_are_told(bench: ModelBench, tmp_path: Path) -> None:
    (tmp_path / FIT).write_text("{")
    with pytest.raises(KvbenchError, match=r"fit\.json cannot be read .*; delete it to fit again"):
        fit(bench, tmp_path, "bits=3").run()


def test_requests_are_checked_and_name_their_folder(bench: ModelBench) -> None:
    with pytest.raises(KvbenchError, match="documents must be at least 1, got 0"):
        FitRequest.of(bench, "kvtc", parse_target("bits=3"), documents=0)
    request = FitRequest.of(bench, "pca+int:bits=4", parse_target("bytes=1MiB"))
    assert default_folder(request) == Path("runs/fits/random-llama-pca-int-bits-4-bytes-1048576")
    with pytest.raises(ValidationError):
        request.tokens = 3
