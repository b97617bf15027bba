"""A model on the bench: everything that trials on one model share, computed once.

Loading, geometry, calibration statistics, exact prompts and baseline log-probabilities are shared by all compressors;
a trial only pays for its own codec.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.attach import Plan, self_test
from kvbench.calibration.statistics import Statistics
from kvbench.calibration.store import statistics_folder
from kvbench.codecs.frame import Frame
from kvbench.compressors.compressor import Compressor, parse
from kvbench.compressors.equal_bytes import Solver
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import ModelGeometry, probe_geometry
from kvbench.kernels.choice import warm_up
from kvbench.kernels.reading import DEFAULT, Reading
from kvbench.measure.arms import Arm
from kvbench.measure.memory import measure_filled
from kvbench.measure.memory_probe import TIMEOUT_S, probe
from kvbench.measure.prompt import ExactPrompt, exact_prompt
from kvbench.measure.quality import QualityBench
from kvbench.measure.results import MemoryResult, QualityResult, SpeedResult
from kvbench.measure.sensitivity import calibrated
from kvbench.measure.speed import SpeedBench
from kvbench.measure.workloads import MemoryWorkload, QualityWorkload, SpeedWorkload
from kvbench.models.loading import LoadedModel, load
from kvbench.texts.splits import Split
from kvbench.texts.windows import Windows, windows

Report = Callable[[str, int, int], None]
"""Called with (what is going on, steps done, steps in all)."""


@dataclass(frozen=True)
class CalibrationSource:
    """Which windows statistics are collected from."""

    text: str
    windows: int
    length: int


@dataclass
class ModelBench:
    """One loaded model with its shared measurements.

    ``code`` names the code and the setting that baselines are computed with: under it, the weights, dtype and device
    they are kept on disk; where it is empty they are not.

    Raises:
        KvbenchError: the model is unknown, broken, or cannot carry a compressed cache.
    """

    name: str
    dtype: str = "float32"
    device: str = "cpu"
    report: Report = lambda what, done, total: None
    code: str = ""
    loaded: LoadedModel = field(init=False)
    geometry: ModelGeometry = field(init=False)

    def __post_init__(self) -> None:
        self.loaded = load(self.name, dtype_named(self.dtype), self.device)
        self.geometry = probe_geometry(self.loaded.model)
        self.report("preparing kernels", 0, 1)
        warm_up(self.loaded.model.device)
        self._tested: set[Frame] = set()
        self._statistics = lru_cache(maxsize=4)(self._collect)
        self._quality = lru_cache(maxsize=1)(self._quality_bench)
        self._speed = lru_cache(maxsize=1)(self._speed_bench)
        self._prompt = lru_cache(maxsize=1)(self._exact_prompt)
        self._windows = lru_cache(maxsize=16)(self._cut)

    def statistics_folder(self, source: CalibrationSource) -> Path:
        """Collect the statistics if need be; the folder that holds them."""
        self._statistics(source)
        return statistics_folder(self.loaded, self.calibration_windows(source), fisher=True)

    # ---- arms ------------------------------------------------------------------------------------------------------

    def arm(self, compressor: Compressor, source: CalibrationSource, reading: Reading = DEFAULT) -> Arm:
        """Fit ``compressor`` and make it ready to run; the self-test runs once per frame of the keys."""
        if compressor.stock is not None:
            return Arm.of(str(compressor), self.loaded.model, self.geometry, None, compressor.stock)
        plan = self.fit(compressor, source)
        if plan.frame not in self._tested:
            self_test(self.loaded.model, self.geometry, plan.frame)
            self._tested.add(plan.frame)
        return Arm.of(str(compressor), self.loaded.model, self.geometry, plan, reading=reading)

    def fit(self, compressor: Compressor, source: CalibrationSource) -> Plan:
        """The compressor's plan for this model."""
        if compressor.saved is not None:
            compressor.saved.check_weights(self.name, self.loaded.weights_sha256)
        return compressor.fit(self.geometry, lambda: self._statistics(source))

    def baselines(self, reading: Reading = DEFAULT) -> list[Arm]:
        """``none``, which attends by kernels if ``reading`` lets it, and ``hf``."""
        return [self._none(reading), Arm.of("hf", self.loaded.model, self.geometry, None)]

    def _none(self, reading: Reading = DEFAULT) -> Arm:
        plan = parse("none").fit(self.geometry)
        return Arm.of("none", self.loaded.model, self.geometry, plan, reading=reading)

    # ---- measurements ----------------------------------------------------------------------------------------------

    def quality(self, arm: Arm, workload: QualityWorkload) -> QualityResult:
        """Score ``arm`` on documents, which workloads share whatever they calibrate on."""
        scored = workload.model_dump(exclude={"calibration_text", "calibration_windows", "calibration_length"})
        return self._quality(QualityWorkload(**scored)).score(arm)

    def speed(self, arm: Arm, workload: SpeedWorkload, text: str, seed: int, split: Split = "test") -> SpeedResult:
        """Time ``arm`` against both baselines."""
        return self._speed(workload, text, seed, split).run(arm, self.baselines(arm.reading))

    def memory(
        self, arm: Arm, workload: MemoryWorkload, text: str, split: Split = "test", timeout_s: float = TIMEOUT_S
    ) -> MemoryResult:
        """Walk the bytes of ``arm``'s cache; with peaks in a process of its own, which may take ``timeout_s``."""
        if not workload.peaks:
            prompt = self._prompt(text, workload.prompt, split).repeat(workload.batch)
            return measure_filled(arm, prompt, workload.steps)
        ids = self.evaluation_windows(text, workload.prompt, workload.batch, split).ids
        return probe(arm, self.name, ids, workload.steps, workload.chunk, timeout_s)

    def solver(self, source: CalibrationSource, tokens: int, spans: Mapping[str, Any] | None = None) -> Solver:
        """A solver for equal bytes at ``tokens``; ``spans`` as in :class:`Solver`."""
        return Solver(self.geometry, self._statistics(source), tokens, spans or {})

    def evaluation_windows(self, text: str, length: int, count: int, split: Split = "test") -> Windows:
        """Windows that are scored or prompted with, one a document, within the model's context."""
        self.check_context(f"{split} length {length}", length)
        return self._windows(text, split, length, count)

    def calibration_windows(self, source: CalibrationSource) -> Windows:
        """Windows of the calibration split, within the model's context."""
        self.check_context(f"calibration length {source.length}", source.length)
        return self._windows(source.text, "calibration", source.length, source.windows)

    def check_context(self, what: str, tokens: int) -> None:
        """Refuse what needs more tokens than the model was made for; learned positions end there."""
        if tokens > self.loaded.context_length:
            raise KvbenchError(
                f"{what} needs {tokens} tokens, but the context of {self.name} ends at {self.loaded.context_length}; "
                "shorten it"
            )

    def _cut(self, text: str, split: Split, length: int, count: int) -> Windows:
        return windows(text, split, self.loaded.tokenizer, length, count)

    def _collect(self, source: CalibrationSource) -> Statistics:
        sample = self.calibration_windows(source)
        return calibrated(
            self.loaded, self.geometry, sample, lambda done, total: self.report("calibrating", done, total)
        )

    def _quality_bench(self, workload: QualityWorkload) -> QualityBench:
        documents = self.evaluation_windows(workload.text, workload.length, workload.documents, workload.split)
        ids = documents.ids.to(self.loaded.model.device)
        depends_on = (self.code, self.loaded.weights_sha256, str(self.loaded.model.dtype), self.device)
        identity = " ".join(depends_on) if self.code else ""
        none, prefix, block = self._none(), workload.prefix, workload.block
        return QualityBench(none, ids, prefix, block, documents.document_ids, workload.decode, identity)

    def _speed_bench(self, workload: SpeedWorkload, text: str, seed: int, split: Split) -> SpeedBench:
        steps, rounds, warmup = workload.steps, workload.rounds, workload.warmup
        ids = self._prompt_ids(text, workload.prompt + (rounds + warmup) * steps, split)
        return SpeedBench(self._none(), ids, workload.batch, steps, rounds, warmup, seed)

    def _exact_prompt(self, text: str, prompt: int, split: Split) -> ExactPrompt:
        return exact_prompt(self.loaded.model, self.geometry, self._prompt_ids(text, prompt, split))

    def _prompt_ids(self, text: str, prompt: int, split: Split) -> Tensor:
        return self.evaluation_windows(text, prompt, 1, split).ids.to(self.loaded.model.device)


def dtype_named(name: str) -> torch.dtype:
    """The torch dtype called ``name``.

    Raises:
        KvbenchError: not a dtype that models run in.
    """
    short = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}
    dtype = getattr(torch, short.get(name, name), None)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise KvbenchError(
            f"unknown dtype {name!r}; known: float32, bfloat16, float16, float64 (fp32, bf16, fp16, fp64)"
        )
    return dtype
