"""From a suite to trials: every default written out, every text and weight pinned by its hash."""

from __future__ import annotations

from kvbench.compressors.compressor import Compressor
from kvbench.kernels.reading import DEFAULT, Reading
from kvbench.measure.bench import CalibrationSource, ModelBench
from kvbench.measure.parts import Inputs
from kvbench.measure.parts.part import TIMEOUT_S
from kvbench.measure.parts.quality import QualityWorkload
from kvbench.runs.code_identity import code_sha256, packages
from kvbench.runs.trials import Trial, Workload


def inputs_of(workload: Workload, seed: int = 0, timeout_s: float = TIMEOUT_S, memory_limited: bool = False) -> Inputs:
    """What the parts of ``workload`` are measured on: the text and calibration of quality, or its defaults without."""
    quality = workload.quality or QualityWorkload()
    source = CalibrationSource(quality.calibration_text, quality.calibration_windows, quality.calibration_length)
    return Inputs(quality.text, quality.split, source, seed, timeout_s, memory_limited)


def resolve(
    bench: ModelBench, compressor: Compressor, workload: Workload, threads: int, seed: int, reading: Reading = DEFAULT
) -> Trial:
    """The trial of one compressor under one workload.

    Raises:
        KvbenchError: an unknown text, a text too short for its split, splits that share a document, or
            more tokens than the model's context, or timed steps that are no whole number of block cycles.
    """
    return Trial(
        model=bench.name,
        weights_sha256=bench.loaded.weights_sha256,
        compressor=str(compressor),
        code=code_sha256(compressor, tuple(workload.parts), bench.device),
        packages=packages(compressor, bench.device),
        workload=workload,
        dtype=str(bench.loaded.model.dtype).removeprefix("torch."),
        device=bench.device,
        threads=threads,
        seed=seed,
        attention=str(reading),
        text_sha256=_text_hashes(bench, compressor, workload),
    )


def _text_hashes(bench: ModelBench, compressor: Compressor, workload: Workload) -> dict[str, str]:
    """What is read of which text, by hash; refuses what cannot be read before anything is measured."""
    inputs = inputs_of(workload)
    windows = {}
    if compressor.needs_calibration:
        windows[f"calibration {inputs.calibration.text}"] = bench.calibration_windows(inputs.calibration)
    for settings in workload.parts.values():
        windows |= settings.windows(bench, compressor, inputs)
    return {name: each.sha256 for name, each in windows.items()}
