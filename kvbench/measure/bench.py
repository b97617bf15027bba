"""A model on the bench: everything that trials on one model share, computed once.

Loading, geometry, calibration statistics, exact prompts and baseline log-probabilities are shared by all compressors;
a trial only pays for its own codec.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from kvbench.cache.attach import Plan
from kvbench.calibration.statistics import Statistics
from kvbench.calibration.store import statistics_folder
from kvbench.compressors.compressor import Compressor, parse
from kvbench.compressors.equal_bytes import Solver
from kvbench.compressors.methods.none import IN_16_BIT
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import ModelGeometry
from kvbench.kernels.choice import warm_up
from kvbench.kernels.reading import DEFAULT, Reading
from kvbench.measure.arm_factory import ArmFactory
from kvbench.measure.arms import Arm
from kvbench.measure.sensitivity import calibrated
from kvbench.models.dtypes import dtype_name
from kvbench.models.loading import LoadedModel, load
from kvbench.texts.splits import Split
from kvbench.texts.windows import Windows, joined_windows, windows

Shared = TypeVar("Shared")

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
        self._factory = ArmFactory.of(self.loaded)
        self.geometry = self._factory.geometry
        self.report("preparing kernels", 0, 1)
        warm_up(self.loaded.model.device)
        self._shared: dict[Any, tuple[tuple[Any, ...], Any]] = {}
        self._statistics = lru_cache(maxsize=4)(self._collect)
        self._windows = lru_cache(maxsize=16)(self._cut)

    def statistics_folder(self, source: CalibrationSource) -> Path:
        """Collect the statistics if need be; the folder that holds them."""
        self._statistics(source)
        return statistics_folder(self.loaded, self.calibration_windows(source), fisher=True)

    # ---- arms ------------------------------------------------------------------------------------------------------

    def arm(self, compressor: Compressor, source: CalibrationSource, reading: Reading = DEFAULT) -> Arm:
        """Fit ``compressor`` and attach it; errors as in :meth:`ArmFactory.arm`."""
        return self._factory.arm(compressor, lambda: self._statistics(source), reading)

    def fit(self, compressor: Compressor, source: CalibrationSource) -> Plan:
        """The compressor's plan for this model."""
        return self._factory.fit(compressor, lambda: self._statistics(source))

    def baselines(self, reading: Reading = DEFAULT) -> list[Arm]:
        """``none`` and the same in 16 bit, which attend by kernels if ``reading`` lets them, and ``hf``.

        In a 16-bit model ``none`` is the cache in 16 bit.
        """
        in_16_bit = [self._uncompressed(IN_16_BIT, reading)] if self.geometry.dtype.itemsize > 2 else []
        return [self.none(reading), *in_16_bit, self._factory.ready("hf", None)]

    def none(self, reading: Reading = DEFAULT) -> Arm:
        """kvbench's own uncompressed cache."""
        return self._uncompressed("none", reading)

    def _uncompressed(self, spec: str, reading: Reading) -> Arm:
        return self._factory.ready(spec, self._factory.fit(parse(spec), None), reading=reading)

    # ---- what measurements share ------------------------------------------------------------------------------------

    def shared(self, build: Callable[..., Shared], *given: Hashable) -> Shared:
        """``build(self, *given)``, computed once for all compressors: of each ``build`` the last one is kept."""
        kept = self._shared.get(build)
        if kept is None or kept[0] != given:
            self._shared.pop(build, None)  # released before the next is built
            kept = self._shared[build] = (given, build(self, *given))
        return kept[1]

    @property
    def identity(self) -> str:
        """Under which baselines are kept on disk; empty where they are not."""
        depends_on = (self.code, self.loaded.weights_sha256, str(self.loaded.model.dtype), self.device)
        return " ".join(depends_on) if self.code else ""

    def prompt_ids(self, text: str, tokens: int, split: Split) -> Tensor:
        """The first window of ``tokens`` tokens, on the model's device: (1, tokens)."""
        return self.evaluation_windows(text, tokens, 1, split).ids.to(self.loaded.model.device)

    def solver(self, source: CalibrationSource, tokens: int, spans: Mapping[str, Any] | None = None) -> Solver:
        """A solver for equal bytes at ``tokens``; ``spans`` as in :class:`Solver`."""
        return Solver(self.geometry, self._statistics(source), tokens, spans or {})

    def evaluation_windows(self, text: str, length: int, count: int, split: Split = "test") -> Windows:
        """Windows that are scored or prompted with, one a document, within the model's context."""
        self.check_context(f"{split} length {length}", length)
        return self._windows(text, split, length, count)

    def joined_windows(self, text: str, length: int, count: int) -> Windows:
        """Windows of the joined test rows, one after the other, within the model's context."""
        self.check_context(f"test length {length}", length)
        return joined_windows(text, self.loaded.tokenizer, length, count)

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


def dtype_named(name: str) -> torch.dtype:
    """The torch dtype called ``name``.

    Raises:
        KvbenchError: not a dtype that models run in.
    """
    dtype: torch.dtype = getattr(torch, dtype_name(name))
    return dtype
