"""Measured sensitivity: one side at a time, kept on disk, and what allocations make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from driving import Subject, calibrated, subject, token_ids
from fp64 import one_thread
from kept_kernels import cache_with_kernels

import kvbench
from kvbench.cache.prediction import predict_bytes
from kvbench.calibration.sensitivity import Sensitivity, SideSensitivity
from kvbench.calibration.statistics import Statistics
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.measure import sensitivity as module
from kvbench.measure.bench import CalibrationSource, ModelBench
from kvbench.measure.sensitivity import measure_sensitivity
from kvbench.texts.windows import windows

__all__ = ["one_thread"]

SOURCE = CalibrationSource("pydoc", 2, 96)


@pytest.fixture(scope="module")
def model() -> Subject:
    return subject("llama", torch.float32, hidden=64, heads=4, kv_heads=2, head_dim=16)


@pytest.fixture(scope="module")
def measured(model: Subject) -> Sensitivity:
    return measure_sensitivity(model.model, model.geometry, calibrated(model), token_ids(1, 96))


def knowing(model: Subject, weights: dict[tuple[int, str], float]) -> Statistics:
    """Statistics whose sensitivity is made up."""
    made_up = Sensitivity({key: SideSensitivity(weight, 1.0) for key, weight in weights.items()})
    return replace(calibrated(model), measure_sensitivity=lambda: made_up)


def test_every_side_of_every_layer_is_measured(model: Subject, measured: Sensitivity) -> None:
    layers = [layer.layer for layer in model.geometry.compressible]
    assert list(measured.sides) == [(layer, side) for layer in layers for side in ("key", "value")]
    assert all(each.kld > 0 and each.error > 0 for each in measured.sides.values())
    assert measured.of(layers[0], "rotated_key") == measured.of(layers[0], "key")


def test_a_side_that_nothing_reads_costs_nothing(model: Subject) -> None:
    silenced = subject("llama", torch.float32, hidden=64, heads=4, kv_heads=2, head_dim=16, vocab=300)
    with torch.no_grad():
        silenced.model.model.layers[1].self_attn.o_proj.weight.zero_()
    silent = measure_sensitivity(silenced.model, silenced.geometry, calibrated(silenced), token_ids(1, 96))
    assert silent.of(1, "key").kld < 1e-9 and silent.of(1, "value").kld < 1e-9
    assert silent.of(0, "value").kld > 100 * silent.of(1, "value").kld


def test_progress_counts_the_probes(model: Subject) -> None:
    seen: list[tuple[int, int]] = []
    measure_sensitivity(
        model.model, model.geometry, calibrated(model), token_ids(1, 80), lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 4) for done in range(1, 5)]


def test_short_windows_are_refused(model: Subject) -> None:
    with pytest.raises(KvbenchError, match="needs windows of 64 tokens, these have 40"):
        measure_sensitivity(model.model, model.geometry, calibrated(model), token_ids(1, 40))


def test_it_survives_the_disk(measured: Sensitivity) -> None:
    assert Sensitivity.from_json(measured.to_json()) == measured


@pytest.mark.parametrize("spec", ["kvtc:bits=3", "palu:rank=0.5,group=2", "matryoshka:rank=0.5"])
def test_the_sensitive_side_gets_more_and_the_total_stays(model: Subject, spec: str) -> None:
    alike = dict.fromkeys([(layer, side) for layer in (0, 1) for side in ("key", "value")], 1.0)
    heavy = alike | {(1, "value"): 1e4}
    compressor = parse(f"{spec},allocate=sensitivity")
    plans = [compressor.fit(model.geometry, knowing(model, weights)) for weights in (alike, heavy)]
    shares = [plan.layers[1].codec.values.cost(torch.float32).payload for plan in plans]
    assert shares[1] > shares[0]
    totals = [predict_bytes(plan, model.geometry, 1000) for plan in plans]
    assert totals[1] == pytest.approx(totals[0], rel=0.03)
    energy = parse(f"{spec},allocate=energy").fit(model.geometry, calibrated(model))
    assert predict_bytes(energy, model.geometry, 1000) == totals[0], "equal weights are no weights"


def test_statistics_without_a_model_say_so(model: Subject) -> None:
    with pytest.raises(KvbenchError, match="allocate=sensitivity needs statistics that can run the model"):
        parse("kvtc:bits=3,allocate=sensitivity").fit(model.geometry, calibrated(model))


def test_it_is_measured_once_and_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBENCH_CACHE", cache_with_kernels(tmp_path / "cache"))
    calls: list[object] = []
    real = module.measure_sensitivity
    monkeypatch.setattr(module, "measure_sensitivity", lambda *given: calls.append(given) or real(*given))
    bench = ModelBench("random:llama")
    bench.arm(parse("kvtc:bits=3"), SOURCE)
    assert not calls
    for spec in ("kvtc:bits=3,allocate=sensitivity", "palu:rank=0.5,allocate=sensitivity"):
        bench.arm(parse(spec), SOURCE)
    ModelBench("random:llama").arm(parse("kvtc:bits=2,allocate=sensitivity"), SOURCE)
    assert len(calls) == 1
    folder = bench.statistics_folder(SOURCE)
    (beside,) = folder.parent.glob(f"{folder.name}-sensitivity-*[0-9]")
    (beside / "sensitivity.json").write_text("[{}]")
    with pytest.raises(KvbenchError, match="is not what was written there; delete"):
        ModelBench("random:llama").arm(parse("kvtc:bits=2,allocate=sensitivity"), SOURCE)


def test_compress_measures_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBENCH_CACHE", cache_with_kernels(tmp_path / "cache"))
    loaded = kvbench.load("random:llama")
    monkeypatch.setattr("kvbench.api.windows", lambda *given: windows("pydoc", "calibration", loaded.tokenizer, 96, 2))
    with kvbench.compress(loaded, "kvtc:bits=3,allocate=sensitivity") as compressed:
        assert compressed.plan.layers
