"""Records to gate: the whole one, with other numbers under other keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from whole_record import MEMORY, PROVENANCE, QUALITY, SPEED, TRIAL

from kvbench.measure.parts.quality import DecodedResult
from kvbench.measure.results import Interval
from kvbench.runs.records import Failure, Record


def _record(compressor: str = "int:bits=4", trial: dict[str, Any] | None = None, **numbers: Any) -> Record:
    """A record of the compressor.

    Numbers: ``bytes``, ``largest``, ``predicted``, ``model_bytes``, ``kld``, ``perplexity``, ``floor``, ``tpot``,
    ``speedup`` (with ± 0.02), and of decoding: ``decoded`` KLD, ``block`` KLD, ``between`` the two, ``attention``.
    """
    memory, quality, speed = MEMORY, QUALITY, SPEED
    memory = memory.model_copy(update={"largest_bytes": 1200})
    if "bytes" in numbers:
        allocated = memory.allocated.model_copy(update={"payload": numbers["bytes"]})
        memory = memory.model_copy(update={"allocated": allocated, "bytes_per_token": allocated.total / memory.tokens})
    for number, name in (
        ("largest", "largest_bytes"),
        ("predicted", "predicted_bytes"),
        ("model_bytes", "model_level_bytes"),
    ):
        if number in numbers:
            memory = memory.model_copy(update={name: numbers[number]})
    kld = numbers.get("kld", 0.012)
    decoded = DecodedResult(
        tokens=96,
        kld_mean=numbers.get("decoded", kld),
        block_kld_mean=numbers.get("block", kld),
        from_blocks_kld=numbers.get("between", 1e-5 * kld),
        attention=numbers.get("attention", "numba int"),
    )
    quality = quality.model_copy(
        update={
            "kld_mean": kld,
            "perplexity": numbers.get("perplexity", 29.0),
            "noise_floor_kld": numbers.get("floor", 1e-11),
            "decoded": decoded,
        }
    )
    around = numbers.get("speedup", 1.0)
    speed = speed.model_copy(
        update={
            "tpot_s": numbers.get("tpot", 0.02),
            "ratio_to_none": around,
            "ratio_to_none_interval": around and Interval(low=around - 0.02, high=around + 0.02),
        }
    )
    changed = TRIAL.model_copy(update={"compressor": compressor, **(trial or {})})
    provenance = PROVENANCE.model_copy(update={"cpu": numbers.get("cpu", PROVENANCE.cpu)})
    return Record.of(changed, "ok", provenance, memory=memory, quality=quality, speed=speed)


def _failed(compressor: str = "int:bits=4") -> Record:
    trial = TRIAL.model_copy(update={"compressor": compressor})
    return Record.of(trial, "oom", PROVENANCE, failure=Failure(type="MemoryError", message="needed 1 GiB"))


@pytest.fixture
def record() -> Callable[..., Record]:
    return _record


@pytest.fixture
def failed() -> Callable[..., Record]:
    return _failed
