"""All projections of one model: every device, compressor, length and batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kvbench.errors import KvbenchError
from kvbench.projection.caches import CacheCost, cache_cost
from kvbench.projection.fits import largest_batch, longest_context, room
from kvbench.projection.step_time import Setting, Step, step


@dataclass(frozen=True)
class Projection:
    """One compressor on one kind of device at one length, in ``batch`` rows; ``step`` is None where they do not fit.

    ``bytes_per_token`` are those of one row on one device, exact spans included. ``longest_context`` is what fits in
    as many rows as were wanted, in one row where that was the largest batch.
    """

    setting: Setting
    compressor: str
    cost: CacheCost
    context: int
    batch: int
    bytes_per_token: float
    largest_batch: int
    longest_context: int
    step: Step | None

    def to_json(self) -> dict[str, Any]:
        """Plain fields; times in seconds, sizes in bytes on one device."""
        setting, taken = self.setting, self.step
        rows = setting.parallel.rows(self.batch)
        told: dict[str, Any] = {
            "kind": "projection",
            "model": setting.shape.name,
            "device": setting.device.key,
            "devices": setting.parallel.devices,
            "tensor_parallel": setting.parallel.tensor,
            "expert_parallel": setting.parallel.expert,
            "weights": setting.precision,
            "efficiency": vars(setting.limits),
            "compressor": self.compressor,
            "stored": self.cost.stored,
            "context": self.context,
            "batch": self.batch,
            "bytes_per_token": self.bytes_per_token,
            "weight_bytes": setting.weight_bytes,
            "basis_bytes": self.cost.basis_bytes,
            "cache_bytes": self.cost.size(self.context, rows) if rows else 0,
            "largest_batch": self.largest_batch,
            "longest_context": self.longest_context,
            "fits": taken is not None,
        }
        if taken is None:
            return told
        limit, of, part = taken.binds
        return told | {
            "step_s": taken.seconds,
            "tokens_per_s": taken.tokens_per_s,
            "binds": {"limit": limit, "of": of, "share": part},
            "phases": [vars(phase) for phase in taken.phases],
            "messages_s": taken.messages,
            "calls_s": taken.calls_s,
        }


def project(
    settings: Sequence[Setting],
    specs: Sequence[str],
    contexts: Sequence[int],
    batches: Sequence[int | None],
    usable: float = 1.0,
) -> list[Projection]:
    """Everything of ``settings``, which differ in nothing but the device; None as a batch is the largest that fits.

    Raises:
        KvbenchError: a compressor cannot be projected, or nothing fits anywhere.
    """
    first = settings[0]
    costs = {spec: cache_cost(spec, first.shape, first.parallel.tensor, first.width) for spec in specs}
    rows = [
        row
        for setting in settings
        for spec, cost in costs.items()
        for context in contexts
        for row in _at(setting, spec, cost, context, batches, usable)
    ]
    if all(row.step is None for row in rows):
        raise KvbenchError(_nothing_fits(settings, min(costs.values(), key=lambda cost: cost.basis_bytes), usable))
    return rows


def _at(
    setting: Setting, spec: str, cost: CacheCost, context: int, batches: Sequence[int | None], usable: float
) -> Iterator[Projection]:
    most = largest_batch(setting, cost, context, usable)
    for wanted in batches:
        batch = most if wanted is None else wanted
        taken = step(setting, cost, context, batch) if 0 < batch <= most else None
        longest = longest_context(setting, cost, wanted or 1, usable)
        per_token = cost.size(context, 1) / context
        yield Projection(setting, spec, cost, context, batch, per_token, most, longest, taken)


def _nothing_fits(settings: Sequence[Setting], cost: CacheCost, usable: float) -> str:
    largest = max(settings, key=lambda setting: setting.device.memory)
    name, memory = largest.shape.name, largest.device.memory * usable / 1e9
    if room(largest, cost, usable) > 0:
        return (
            f"nothing fits: the weights of {name} leave too little room for such a batch and context; try --batch max"
        )
    spread = "--ep or --tp" if largest.shape.weights.experts else "--tp"
    narrower = "" if largest.precision == "fp8" else ", or take --weights fp8"
    return (
        f"nothing fits: weights of {name} in {largest.precision} take {largest.weight_bytes / 1e9:,.0f} GB a device, "
        f"and {largest.device.key} has {memory:,.0f} GB; spread them by {spread}{narrower}"
    )
