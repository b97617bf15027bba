"""From a suite to trials: every default written out, every text and weight pinned by its hash."""

from __future__ import annotations

from kvbench.compressors.compressor import Compressor
from kvbench.kernels.reading import DEFAULT, Reading
from kvbench.measure.bench import CalibrationSource, ModelBench
from kvbench.measure.cycles import require_whole_cycles
from kvbench.measure.workloads import QualityWorkload
from kvbench.runs.code_identity import code_sha256, packages
from kvbench.runs.trials import Trial, Workload
from kvbench.texts.splits import Split
from kvbench.texts.windows import check_disjoint


def calibration_source(workload: Workload) -> CalibrationSource:
    """Where a workload's compressors are calibrated; the defaults of quality when it measures none."""
    quality = workload.quality or QualityWorkload()
    return CalibrationSource(quality.calibration_text, quality.calibration_windows, quality.calibration_length)


def evaluation_text(workload: Workload) -> str:
    """The text that prompts and documents come from."""
    return (workload.quality or QualityWorkload()).text


def evaluation_split(workload: Workload) -> Split:
    """The split of that text that they come from."""
    return (workload.quality or QualityWorkload()).split


def resolve(
    bench: ModelBench, compressor: Compressor, workload: Workload, threads: int, seed: int, reading: Reading = DEFAULT
) -> Trial:
    """The trial of one compressor under one workload.

    Raises:
        KvbenchError: an unknown text, a text too short for its split, splits that share a document, or
            more tokens than the model's context, or timed steps that are no whole number of block cycles.
    """
    if workload.speed is not None and compressor.baseline is None:
        require_whole_cycles(str(compressor), compressor.spans.block, workload.speed.steps, workload.speed.rounds)
    return Trial(
        model=bench.name,
        weights_sha256=bench.loaded.weights_sha256,
        compressor=str(compressor),
        code=code_sha256(compressor, workload.parts, bench.device),
        packages=packages(compressor, bench.device),
        workload=workload,
        dtype=str(bench.loaded.model.dtype).removeprefix("torch."),
        device=bench.device,
        threads=threads,
        seed=seed,
        attention=str(reading),
        text_sha256=_text_hashes(bench, workload, compressor.needs_calibration),
    )


def _text_hashes(bench: ModelBench, workload: Workload, calibrates: bool) -> dict[str, str]:
    """What is read of which text, by hash; refuses what cannot be read before anything is measured."""
    source, text, split = calibration_source(workload), evaluation_text(workload), evaluation_split(workload)
    quality, speed, memory = workload.quality, workload.speed, workload.memory
    windows = {}
    if calibrates:
        windows[f"calibration {source.text}"] = bench.calibration_windows(source)
    if quality is not None:
        scored = bench.evaluation_windows(text, quality.length, quality.documents, split)
        check_disjoint(bench.calibration_windows(source), scored)
        windows[f"{split} {text}"] = scored
    if speed is not None:
        decoded = speed.prompt + (speed.rounds + speed.warmup) * speed.steps
        bench.check_context("speed (prompt + the steps of all rounds)", decoded)
        windows[f"decoded {text} {decoded}"] = bench.evaluation_windows(text, decoded, 1, split)
    if memory is not None:
        bench.check_context("memory (prompt + steps)", memory.prompt + memory.steps)
        rows = f"{memory.batch} × {memory.prompt}" if memory.batch > 1 else f"{memory.prompt}"
        windows[f"prompt {text} {rows}"] = bench.evaluation_windows(text, memory.prompt, memory.batch, split)
    return {name: each.sha256 for name, each in windows.items()}
