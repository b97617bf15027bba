"""Random weights: the same on every machine, nearly normal, each by its own name."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from kvbench.models.loading import load
from kvbench.models.random_models import build
from kvbench.models.random_weights import CHUNK, DEVIATION, MEAN, draw

DIGEST = "import kvbench.models.loading as l; print(l.load('random:llama').weights_sha256)"


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_instruction_set_makes_the_same_weights(capability: str):
    command = [sys.executable, "-c", DIGEST]
    where = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    there = subprocess.run(command, capture_output=True, text=True, check=True, env=where).stdout.strip()
    assert there == load("random:llama").weights_sha256


def test_a_weight_is_the_scaled_sum_of_eight_numbers_of_16_bits():
    # The first of three takes words 0 and 3 of the generator, 0x52e9ffad32f2ba5c and 0x5629a88e8f1f2ffd.
    pieces = [0x52E9, 0xFFAD, 0x32F2, 0xBA5C, 0x5629, 0xA88E, 0x8F1F, 0x2FFD]
    assert draw(0, "a", 3, 1.0)[0] == np.float32((sum(pieces) - MEAN) * (1 / DEVIATION))
    assert draw(0, "a", 3, 1.0).tobytes().hex() == "eae431bc676b8f3e4f808c3f"


def test_a_long_tensor_is_drawn_in_chunks_of_one_stream():
    long = draw(0, "a", CHUNK + 5, 1.0)
    assert np.array_equal(long[:CHUNK], draw(0, "a", CHUNK, 1.0)) and np.unique(long[CHUNK:]).size == 5


def test_weights_are_nearly_normal():
    drawn = draw(3, "weight", 400_000, 0.054).astype(np.float64) / 0.054
    assert abs(drawn.mean()) < 0.01 and abs(drawn.std() - 1) < 0.01
    assert abs((drawn**4).mean() - 2.85) < 0.03, "3 - 6 / (5 · 8): the kurtosis of a sum of eight uniform numbers"
    assert np.abs(drawn).max() <= MEAN / DEVIATION


def test_every_name_and_seed_draws_its_own():
    assert len({draw(seed, name, 9, 1.0).tobytes() for seed, name in ((0, "a"), (0, "b"), (1, "a"))}) == 3


def test_a_layer_more_leaves_the_others_as_they_were():
    short, long = (dict(build("llama", layers=layers).named_parameters()) for layers in (2, 3))
    assert all(torch.equal(long[name], parameter) for name, parameter in short.items())
