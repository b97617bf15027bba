"""From a suite to trials: every default written out, every text and weight pinned by its hash."""

from __future__ import annotations

from kvbench.compressors.compressor import parse
from kvbench.measure.bench import CalibrationSource, ModelBench
from kvbench.runs.trials import QualityWorkload, Trial, Workload


def calibration_source(workload: Workload) -> CalibrationSource:
    """Where a workload's compressors are calibrated; the defaults of quality when it measures none."""
    quality = workload.quality or QualityWorkload()
    return CalibrationSource(quality.calibration_text, quality.calibration_windows, quality.calibration_length)


def evaluation_text(workload: Workload) -> str:
    """The text that prompts and documents come from."""
    return (workload.quality or QualityWorkload()).text


def resolve(bench: ModelBench, compressor: str, workload: Workload, threads: int, seed: int) -> Trial:
    """The trial of one compressor under one workload.

    Raises:
        KvbenchError: a bad spec, an unknown text, or a text too short for its split.
    """
    parsed = parse(compressor)
    source, text = calibration_source(workload), evaluation_text(workload)
    hashes = {}
    if workload.quality is not None:
        evaluation = bench.evaluation_windows(text, workload.quality.length, workload.quality.documents)
        hashes[f"evaluation {text}"] = evaluation.sha256
    if parsed.needs_calibration:
        hashes[f"calibration {source.text}"] = bench.calibration_windows(source).sha256
    for part in (workload.speed, workload.memory):
        if part is not None:
            hashes[f"prompt {text} {part.prompt}"] = bench.evaluation_windows(text, part.prompt, 1).sha256
    return Trial(
        model=bench.name,
        weights_sha256=bench.loaded.weights_sha256,
        compressor=str(parsed),
        compressor_code=parsed.code_hash(),
        workload=workload,
        dtype=str(bench.loaded.model.dtype).removeprefix("torch."),
        device=bench.device,
        threads=threads,
        seed=seed,
        text_sha256=hashes,
    )
