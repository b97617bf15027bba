"""Models with linear and full attention: what is compressed, and its share of the cache."""

from __future__ import annotations

import pytest
import torch
from tiny_configs import VOCABULARY, tiny_model

from kvbench.cache.cache import reachable_tensors
from kvbench.compressors.compressor import parse
from kvbench.hooks.geometry import probe_geometry
from kvbench.measure.arms import Arm
from kvbench.measure.memory import measure_memory

pytestmark = pytest.mark.usefixtures("fp64", "one_thread")


@pytest.mark.parametrize("family", ["qwen3_next", "bamba"])
def test_linear_layers_are_told_with_their_bytes(family: str) -> None:
    model = tiny_model(family)
    geometry = probe_geometry(model)
    arm = Arm.of("int", model, geometry, parse("int:bits=4,sinks=2,recent=4,block=4").fit(geometry))
    ids = torch.randint(3, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(0))
    memory = measure_memory(arm, ids, steps=0)
    (full,) = (layer.layer for layer in geometry.layers)
    assert memory.compressed_at == (full,)
    assert memory.kept_layers == {"linear_attention": 1}
    with arm.entered():
        cache = arm.new_cache()
        arm.forward(ids, cache)
    states = {tensor.untyped_storage().data_ptr(): tensor for tensor in reachable_tensors(cache.layers[1 - full])}
    linear = sum(tensor.untyped_storage().nbytes() for tensor in states.values())
    assert linear > 0
    assert memory.compressed_bytes == memory.allocated.total - memory.allocated.positions - linear
