"""Predictive coordinates: first some dimensions, then what those do not tell."""

from __future__ import annotations

import torch

from kvbench.codecs.codec import SideCodec
from kvbench.codecs.quantizers.base import Passthrough
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.transforms.fitting import weighted_basis
from kvbench.codecs.transforms.predictive import PredictiveBasis

FIRST, REST = torch.tensor([0, 3, 5, 6]), torch.tensor([1, 2, 4, 7, 8, 9, 10, 11])


def samples(count: int = 4096) -> torch.Tensor:
    """Twelve dimensions driven by six sources."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    noise = 0.2 * torch.randn(count, 12, generator=generator, dtype=torch.float64)
    return torch.randn(count, 6, generator=generator, dtype=torch.float64) @ mixing + noise


def test_all_components_lose_nothing() -> None:
    x = samples()
    fitted = PredictiveBasis.fit(x.T @ x / len(x), torch.eye(12, dtype=torch.float64), FIRST, REST)
    basis = fitted.leading(4, 8)
    transform = basis.transform(torch.zeros(12, dtype=torch.float64), 12, torch.float64)
    codec = SideCodec(1, 12, transform, Passthrough(torch.float64), leading=4)
    torch.testing.assert_close(codec.decode(codec.encode(x[None, None]))[0, 0], x)


def test_first_dimensions_need_no_other_components() -> None:
    fitted = PredictiveBasis.fit(torch.eye(12, dtype=torch.float64), torch.eye(12, dtype=torch.float64), FIRST, REST)
    assert not fitted.leading(4, 8).decoder[0, 4:][:, FIRST].any()
    assert not fitted.leading(4, 8).encoder[0, REST][:, :4].any()


def test_the_chain_rule_holds_for_variances() -> None:
    """Whatever is coded first, the volume is that of one joint basis: log det C = log det C_x + log det C_(y|x)."""
    x = samples()
    moment, metric = x.T @ x / len(x), torch.eye(12, dtype=torch.float64)
    joint = weighted_basis(moment, metric, 1).variances
    chained = PredictiveBasis.fit(moment, metric, FIRST, REST).variances
    torch.testing.assert_close(chained.log().sum(), joint.log().sum())


def test_quantized_leading_components_are_made_up_for() -> None:
    """The rest is coded relative to what was really stored: a coarse first part costs the rest nothing."""
    x = samples().float()
    moment = (x.T @ x / len(x)).double()
    basis = PredictiveBasis.fit(moment, torch.eye(12, dtype=torch.float64), FIRST, REST).leading(4, 8)
    transform = basis.transform(torch.zeros(12), 12, torch.float32)
    deviation = basis.variances.sqrt().float() * basis.scale(12)
    quantizer = CodebookQuantizer((2,) * 4 + (8,) * 8, deviation)
    errors = {}
    for leading in (0, 4):
        codec = SideCodec(1, 12, transform, quantizer, leading=leading)
        error = codec.decode(codec.encode(x[None, None]))[0, 0] - x
        errors[leading] = error[:, REST].square().mean()
    assert errors[4] < 0.1 * errors[0], "an open loop hands the first part's error on"
