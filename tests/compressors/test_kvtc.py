"""Transform coding as its paper has it: entropy coding, and bases across layers."""

from __future__ import annotations

import pytest
import torch
from driving import calibrated, feed, subject, token_ids

from kvbench.cache.attach import Plan
from kvbench.cache.prediction import body_bits_per_element, predict_bytes
from kvbench.cache.spans import Spans
from kvbench.compressors.compressor import parse
from kvbench.compressors.draft import Draft
from kvbench.compressors.shared import layer_groups
from kvbench.errors import KvbenchError

pytestmark = pytest.mark.usefixtures("fp64")
SPANS = Spans(sinks=2, recent=16, block=32)
SETTINGS = (
    "coder=entropy",
    "coder=blocks",
    "layers=0,coder=blocks",
    "layers=2",
    "layers=0,coder=entropy",
    "layers=2,allocate=fisher,coder=entropy",
)


def fitted(spec: str, spans: Spans = SPANS) -> Plan:
    one = subject("llama", layers=3)
    return Plan(parse(spec).fit(one.geometry, calibrated(one)).layers, spans)


def loss(spec: str) -> float:
    """Mean squared error of the logits after a compressed prompt, against the stock model."""
    one, ids = subject("llama", layers=3), token_ids(2, 150)
    stock = one.model(ids, use_cache=False).logits[:, 140:]
    with one.attach_untested(fitted(spec)) as compressed:
        return float((feed(one.model, compressed.new_cache(), ids, [140, 10])[:, 140:] - stock).square().mean())


@pytest.mark.parametrize("settings", SETTINGS)
def test_error_falls_with_bits(settings: str) -> None:
    errors = [loss(f"kvtc:bits={bits},{settings}") for bits in (2, 4, 6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 10 * errors[-1] > 0


def test_an_entropy_coder_loses_less_at_the_same_bits() -> None:
    assert loss("kvtc:bits=3,coder=entropy") < 0.7 * loss("kvtc:bits=3")


@pytest.mark.parametrize("settings", SETTINGS)
def test_bytes_are_predicted_and_allocated(settings: str) -> None:
    one, ids, plan = subject("llama", layers=3), token_ids(1, 400), fitted(f"kvtc:bits=3,{settings}")
    with one.attach_untested(plan) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [400])
        assert cache.nbytes().total == predict_bytes(plan, one.geometry, 400)
    assert body_bits_per_element(plan, one.geometry) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("coder", ["fixed", "entropy"])
def test_a_basis_across_layers_is_kept_once(coder: str) -> None:
    plan = fitted(f"kvtc:bits=8,layers=0,coder={coder}")
    bases = [layer.codec.keys.transform for layer in plan.layers.values() if layer.codec is not None]
    assert len({basis.decoder.data_ptr() for basis in bases if basis is not None}) == 1


def test_every_layer_decodes_its_own_channels() -> None:
    """With 8 bits a layer of a group comes back as what it put in."""
    one = subject("llama", layers=3)
    plan = fitted("kvtc:bits=8,layers=0")
    codecs = [layer.codec for layer in plan.layers.values()]
    geometry, generator = one.geometry.layers[0], torch.Generator().manual_seed(0)
    statistics = calibrated(one).layers
    keys, values = [], []
    for layer in range(3):
        for side, into in (("key", keys), ("value", values)):
            root = torch.linalg.cholesky(statistics[layer].covariance(side) + 1e-12 * torch.eye(32).double())
            drawn = torch.randn(64, 32, generator=generator, dtype=torch.float64) @ root.T + statistics[layer].mean(
                side
            )
            into.append(drawn.view(1, 64, geometry.kv_heads, -1).transpose(1, 2))
    stored = codecs[0].whole.encode(torch.cat(keys, 1), torch.cat(values, 1))
    for layer, codec in enumerate(codecs):
        for decoded, expected in zip(codec.bound({}).decode(stored), (keys[layer], values[layer]), strict=True):
            assert float((decoded - expected).norm() / expected.norm()) < 0.1


def test_groups_are_adjacent_layers_of_one_shape() -> None:
    draft = Draft(subject("llama", layers=5).geometry, None)
    sizes = {
        size: [[layer.geometry.layer for layer in group] for group in layer_groups(draft, size)] for size in (0, 1, 2)
    }
    assert sizes == {0: [[0, 1, 2, 3, 4]], 1: [[0], [1], [2], [3], [4]], 2: [[0, 1], [2, 3], [4]]}


def test_moments_across_layers_agree_with_each_layers_own() -> None:
    one = subject("llama", layers=3)
    statistics = calibrated(one)
    across = statistics.across(((0, 1, 2),))
    for layer in range(3):
        rows = slice(32 * layer, 32 * (layer + 1))
        for side, moments in (("key", across.keys), ("value", across.values)):
            block, expected = moments[0, 1, 2][rows, rows], statistics.layers[layer].covariance(side)
            assert torch.allclose(block, expected, atol=1e-6 * float(expected.abs().max()))
    assert type(across).from_tensors(across.tensors()).keys.keys() == across.keys.keys()


def test_what_cannot_be_is_refused_in_one_line() -> None:
    one = subject("llama", layers=3)
    statistics = calibrated(one)
    with pytest.raises(KvbenchError, match="leave the selector out"):
        parse("kvtc:bits=3,layers=2+knorm:budget=0.5").fit(one.geometry, statistics)
    with pytest.raises(KvbenchError, match="at least 0 \\(0: all of them\\)"):
        parse("kvtc:bits=3,layers=-1")
    alone = type(statistics)(statistics.layers, "", "", "")
    with pytest.raises(KvbenchError, match="bases across layers need statistics that can run the model"):
        parse("kvtc:bits=3,layers=2").fit(one.geometry, alone)
