"""Models of which a compressor leaves some layers alone: what a reader must know before judging its size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from kvbench.measure.parts.memory import MemoryResult
from kvbench.runs.records import Record

_KEPT = {
    "sliding_window": "with a sliding window",
    "linear_attention": "of linear attention",
    "exact": "exact by the method",
}


def partly_remarks(records: Iterable[Record]) -> list[str]:
    """A line for each choice of layers that is not all of them: which, and their share of the caches' bytes."""
    shares: dict[str, list[float]] = {}
    for record in records:
        memory = record.memory
        if memory is not None and memory.kept_layers and memory.compressed_bytes is not None:
            shares.setdefault(_layers(memory), []).append(memory.compressed_bytes / memory.allocated.total)
    return [layers.format(share=_share(each)) for layers, each in shares.items()]


def _layers(memory: MemoryResult) -> str:
    at, kept = memory.compressed_at or (), memory.kept_layers or {}
    every = len(at) + sum(kept.values())
    others = ", ".join(f"{count} {_KEPT.get(kind, kind)}" for kind, count in kept.items())
    which = f" ({numbers(at)}; the first is 0)" if at else ""
    return f"{len(at)} of {every} layers are compressed{which} and hold {{share}} of the cache; as they are: {others}"


def numbers(layers: Sequence[int]) -> str:
    """Ascending numbers, runs of them by their ends.

    >>> numbers((1, 3, 4, 5, 8))
    '1, 3–5, 8'
    """
    runs = [[layer for _, layer in run] for _, run in groupby(enumerate(layers), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def _share(shares: Sequence[float]) -> str:
    low, high = (f"{share:.0%}" for share in (min(shares), max(shares)))
    return low if low == high else f"{low} to {high}"
