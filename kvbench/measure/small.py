"""A small calibrated model: what a compressor would be fitted to, where no model is named."""

from __future__ import annotations

from dataclasses import MISSING, fields
from functools import lru_cache

import torch

from kvbench.cache.attach import Plan
from kvbench.cache.attends import attends
from kvbench.cache.reads import STOCK
from kvbench.calibration.statistics import Statistics
from kvbench.compressors.compressor import Compressor, parse
from kvbench.compressors.part import Part
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import ModelGeometry, probe_geometry
from kvbench.measure.sensitivity import collected
from kvbench.models.random_models import build

_SIZES = {"layers": 2, "hidden": 128, "heads": 4, "kv_heads": 4, "head_dim": 32, "context": 512}
_TOKENS = 128
_REQUIRED = {"bits": "4", "rank": "0.5", "budget": "0.5", "latent": "24", "rope_dims": "8", "to": "fp8"}
"""What an example sets where a part has no default."""
_OPEN = ("rank", "budget")
"""What some parts take instead of another setting, and one of both they need."""


def example(cls: type[Part]) -> str | None:
    """A spec of ``cls`` with its defaults, and a middling value for what has none; None if that cannot be guessed."""
    needed = [
        item.name for item in fields(cls) if item.default is MISSING or (item.default is None and item.name in _OPEN)
    ]
    if any(name not in _REQUIRED for name in needed):
        return None
    settings = ",".join(f"{name}={_REQUIRED[name]}" for name in needed)
    return cls.name + (f":{settings}" if settings else "")


def attends_on_small(spec: str) -> str | None:
    """What attends to the caches of ``spec`` in fp32 on this machine's CPU (:func:`kvbench.cache.attends.attends`).

    None where ``spec`` does not fit the small model: a saved plan, or a setting made for another model's size.
    """
    try:
        compressor = parse(spec)
        if compressor.stock is not None:
            return STOCK
        return attends(_fitted(compressor), _geometry())
    except KvbenchError:
        return None


def _fitted(compressor: Compressor) -> Plan:
    return compressor.fit(_geometry(), lambda: _calibrated()[1])


def _geometry() -> ModelGeometry:
    return _calibrated()[0]


@lru_cache(maxsize=1)
def _calibrated() -> tuple[ModelGeometry, Statistics]:
    model = build("llama", torch.float32, 0, **_SIZES)
    geometry = probe_geometry(model)
    ids = torch.randint(3, model.config.vocab_size, (1, _TOKENS), generator=torch.Generator().manual_seed(0))
    return geometry, collected(model, geometry, ids)
