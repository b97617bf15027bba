"""GEAR's quantizer: factors and outliers take error away and are paid for."""

import pytest
import torch

from kvbench.codecs.quantizers.gear import ResidualQuantizer
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.codecs.quantizers.outliers import Outliers

GROUPS, RANK, CHUNK = 3, 16, 64


def quantizer(rank=2, fraction=0.02, axis="channel"):
    return ResidualQuantizer(IntegerQuantizer(2, 16, axis), Outliers(fraction), rank, CHUNK)


def states(tokens=2 * CHUNK):
    return torch.randn(2, GROUPS, tokens, RANK, generator=torch.Generator().manual_seed(0)) * 2 + 0.5


def error(one):
    return float((one.decode(one.encode(states())) - states()).square().mean())


@pytest.mark.parametrize("axis", ["channel", "token"])
@pytest.mark.parametrize(("rank", "fraction"), [(1, 0.0), (2, 0.02), (40, 0.1)])
def test_cost_is_what_it_takes(rank, fraction, axis):
    one = quantizer(rank, fraction, axis)
    stored, cost = one.encode(states()), one.cost(GROUPS, RANK, torch.float32)
    assert sum(tensor.nbytes for tensor in stored.values()) * 8 == 2 * 2 * CHUNK * (cost.payload + cost.scales)


@pytest.mark.parametrize("axis", ["channel", "token"])
def test_factors_and_outliers_take_error_away(axis):
    plain, factors, both = (error(quantizer(*setting, axis)) for setting in ((1, 0.0), (4, 0.0), (4, 0.05)))
    assert error(IntegerQuantizer(2, 16, axis)) > plain > factors > both
    assert error(quantizer(RANK, 0.0, axis)) < 1e-5


def test_outliers_come_back_exactly():
    spiked = states()
    spiked[0, 1, 5, 3] = 300.0
    one = quantizer()
    assert float(one.decode(one.encode(spiked))[0, 1, 5, 3]) == 300.0


def test_chunks_do_not_depend_on_each_other():
    one = quantizer(axis="token")
    whole, first = one.decode(one.encode(states())), one.decode(one.encode(states()[:, :, :CHUNK]))
    torch.testing.assert_close(whole[:, :, :CHUNK], first)
