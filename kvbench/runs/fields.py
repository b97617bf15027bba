"""Records as flat rows of named values: what filters name, and what tables of other programs hold."""

from __future__ import annotations

from typing import Any

from kvbench.runs.canonical import content
from kvbench.runs.records import Record

SHORT = {
    "model": "trial.model",
    "compressor": "trial.compressor",
    "workload": "trial.workload.name",
    "dtype": "trial.dtype",
    "device": "trial.device",
    "threads": "trial.threads",
    "commit": "provenance.git_sha",
    "bits": "memory.bits_per_element",
    "bits_with_bases": "memory.bits_with_bases",
    "ratio": "memory.ratio_allocated",
    "peak_bytes": "memory.peak_decode_bytes",
    "kld": "quality.kld_mean",
    "perplexity": "quality.perplexity",
    "top1": "quality.same_top1",
    "tpot_s": "speed.tpot_s",
    "ttft_s": "speed.ttft_s",
    "tokens_per_s": "speed.tokens_per_s",
    "over_none": "speed.ratio_to_none",
    "over_16_bit": "speed.ratio_to_16_bit",
    "over_hf": "speed.ratio_to_hf",
}
"""Names that are easy to write, and the fields that they stand for."""

Value = str | float | int | bool | None


def fields_of(record: Record) -> dict[str, Value]:
    """All single values of ``record`` by dotted name, those of :data:`SHORT` first and by that name.

    Lists are left out, but for a mean ``score`` of tasks and its ``baseline_score``.
    """
    every = dict(_flat("", content(record)))
    short: dict[str, Value] = {name: every.pop(field, None) for name, field in SHORT.items()}
    if record.tasks is not None:
        short |= {"score": record.tasks.score, "baseline_score": record.tasks.baseline}
    return short | every


def _flat(prefix: str, value: Any) -> list[tuple[str, Value]]:
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _flat(f"{prefix}.{key}" if prefix else key, item)]
    return [] if isinstance(value, list) else [(prefix, value)]
