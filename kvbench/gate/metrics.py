"""The numbers that are gated: what each is called, where a record has it, and how far it may move.

All are better when smaller. A new one is one entry of :data:`METRICS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from kvbench.gate.agreement import LEAST, ROUNDING
from kvbench.measure.parts.memory import MemoryResult
from kvbench.measure.parts.quality import DecodedResult, QualityResult
from kvbench.runs.records import Record
from kvbench.storage.frozen import Frozen


class Tolerance(Frozen):
    """Within which margin a number counts as unchanged: a share of itself, or rounding on both sides."""

    relative: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    absolute: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Numbers that are no larger than this on both sides are rounding, and any of them is as good as another."""

    def allows(self, before: float, after: float) -> bool:
        """Whether the numbers are equal or within the margin; never for NaN or between finite and infinite."""
        if before == after or max(abs(before), abs(after)) <= self.absolute:
            return True
        return math.isfinite(before) and abs(after - before) <= self.relative * abs(before)


EXACT = Tolerance(relative=0.0, absolute=0.0)

ROUNDED = Tolerance(relative=0.02, absolute=0.0)
"""Another processor rounds differently and tips a few quantized values."""

FITTED = Tolerance(relative=0.15, absolute=0.0)
"""A fit turns rounding into other axes and other widths, and all codes are drawn anew. Of the suite ``ci`` under six
kinds of arithmetic (``benchmarks/gate_selftest.py values``) the mean over all scored tokens moved by up to 7 %."""

FITTED_FEW_TOKENS = Tolerance(relative=0.25, absolute=0.0)
"""The same of the few tokens that are decoded one by one: up to 10 %."""

Number = Callable[[Record], float | None]


@dataclass(frozen=True)
class Metric:
    """``number`` gives None where a record's workload did not ask for it.

    ``is_divergence``: it is rounding where nothing is lost.
    """

    name: str
    number: Number
    tolerance: Tolerance = EXACT
    is_divergence: bool = False
    fitted: Tolerance | None = None
    """That of compressors that were fitted to a text, where it is another."""


def _memory(read: Callable[[MemoryResult], float | None]) -> Number:
    return lambda record: read(record.memory) if record.memory else None


def _quality(read: Callable[[QualityResult], float | None]) -> Number:
    return lambda record: read(record.quality) if record.quality else None


def _decoded(read: Callable[[DecodedResult], float | None]) -> Number:
    return _quality(lambda quality: read(quality.decoded) if quality.decoded else None)


METRICS = (
    Metric("bytes_per_token", _memory(lambda memory: memory.bytes_per_token)),
    Metric("allocated_bytes", _memory(lambda memory: memory.allocated.total)),
    Metric("largest_bytes", _memory(lambda memory: memory.largest_bytes)),
    Metric("predicted_bytes", _memory(lambda memory: memory.predicted_bytes)),
    Metric("model_level_bytes", _memory(lambda memory: memory.model_level_bytes)),
    Metric("kld_mean", _quality(lambda quality: quality.kld_mean), ROUNDED, is_divergence=True, fitted=FITTED),
    Metric(
        "decode_kld_mean",
        _decoded(lambda decoded: decoded.kld_mean),
        ROUNDED,
        is_divergence=True,
        fitted=FITTED_FEW_TOKENS,
    ),
    # Rounding itself: its size matters, not its digits.
    Metric(
        "noise_floor_kld",
        _quality(lambda quality: quality.noise_floor_kld),
        Tolerance(relative=ROUNDING - 1, absolute=LEAST),
    ),
    Metric("perplexity", _quality(lambda quality: quality.perplexity), Tolerance(relative=0.002, absolute=0.0)),
)
"""In the order of tables and files."""

TOLERANCES = {metric.name: metric.tolerance for metric in METRICS}

TOLERANCES_OF_FITTED = {metric.name: metric.fitted for metric in METRICS if metric.fitted}
"""Those that differ where a compressor was calibrated."""


def _known(name: str) -> str:
    if name not in TOLERANCES:
        raise ValueError(f"no metric {name!r}; known: {', '.join(TOLERANCES)}")
    return name


MetricName = Annotated[str, AfterValidator(_known)]


def numbers(record: Record) -> dict[str, float]:
    """The record's reproducible numbers by name; without those that its workload did not ask for."""
    read = {metric.name: metric.number(record) for metric in METRICS}
    return {name: number for name, number in read.items() if number is not None}
