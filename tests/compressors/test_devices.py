"""A fitted plan lives where the model computes, wherever the statistics were; entropy coders stay on the CPU."""

import dataclasses

import pytest
import torch
from default_specs import ALL_SPECS, CODED_SPECS
from driving import calibrated, subject

from kvbench.compressors.compressor import parse


@pytest.mark.parametrize("spec", [spec for spec in ALL_SPECS if spec not in CODED_SPECS])
def test_every_tensor_of_a_codec_is_on_the_models_device(spec: str) -> None:
    one, device = subject("llama"), torch.device("meta")
    plan = parse(spec).fit(dataclasses.replace(one.geometry, device=device), calibrated(one))
    for layer in plan.layers.values():
        assert layer.codec is not None
        assert {tensor.device for tensor in layer.codec.tensors()} <= {device}
