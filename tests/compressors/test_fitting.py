"""Fitting: more bits or rank lose less, and what does not fit a model is refused in one line."""

from __future__ import annotations

import copy

import pytest
import torch
from default_specs import ALL_SPECS, LOSSY_SPECS
from driving import calibrated, feed, subject, token_ids

from kvbench.calibration.collect import collect
from kvbench.compressors.compressor import parse
from kvbench.compressors.draft import Draft
from kvbench.errors import KvbenchError, UnsupportedModelError

pytestmark = pytest.mark.usefixtures("fp64")
PROMPT, NEW = 96, 12
LADDERS = {
    "int:bits={},group=16": (2, 3, 4, 8),
    "int:bits={},side=keys": (2, 4, 8),
    "int:bits={},side=values": (2, 4, 8),
    "kivi:bits={}": (2, 3, 4, 8),
    "kvtc:bits={}": (1, 2, 3, 4, 6),
    "kvtc:bits={},shift=-1": (1.5, 3, 6),
    "ftc:bits={}": (1, 2, 3, 4, 6),
    "turboquant:bits={}": (2, 3, 4),
    "pca:rank={}": (0.1, 0.4, 0.8, 1),
    "pca:rank={},heads=each,frame=after": (0.1, 0.5, 1),
    "pca:energy={}": (0.3, 0.7, 0.99),
    "palu:rank={},group=2": (0.1, 0.4, 0.8, 1),
    "palu:rank={},allocate=energy": (0.1, 0.5, 1),
    "pca:rank=1+int:bits={}": (2, 4, 8),
    "streaming:recent={}": (0, 32, 80),
}


def loss(spec: str) -> float:
    """Relative error of the logits of new tokens that attend a compressed prompt."""
    one, compressor, ids = subject("llama"), parse(spec), token_ids(2, PROMPT + NEW, seed=3)
    statistics = calibrated(one) if compressor.needs_calibration else None
    stock = one.model(ids).logits[:, PROMPT:]
    with one.attach_untested(compressor.fit(one.geometry, statistics)) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [PROMPT])
        logits = feed(one.model, cache, ids, [NEW], start=PROMPT)
    return float((logits - stock).norm() / stock.norm())


@pytest.mark.parametrize("ladder", LADDERS)
def test_more_loses_less(ladder: str) -> None:
    window = "" if "recent=" in ladder else ",recent=0,block=8"
    losses = [loss(ladder.format(step) + window) for step in LADDERS[ladder]]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 1.5 * losses[-1]


def test_full_rank_and_a_wide_window_lose_nothing() -> None:
    for spec in ("pca:rank=1", "palu:rank=1", "pca:energy=1,heads=each", "int:bits=2,recent=200", "knorm:budget=1"):
        assert loss(spec) < 1e-10


@pytest.mark.parametrize("spec", LOSSY_SPECS)
def test_no_method_is_far_worse_than_forgetting(spec: str) -> None:
    """Against keeping nothing but the sinks; the random controls may lose to it, a broken method loses by far."""
    window = ",recent=0" if ":" in spec.split("+")[-1] else ":recent=0"
    assert loss(spec + window) < 1.4 * loss("streaming:recent=0")


@pytest.mark.parametrize("spec", [spec for spec in ALL_SPECS if parse(spec).needs_calibration])
def test_a_method_that_needs_calibration_says_so(spec: str) -> None:
    with pytest.raises(KvbenchError, match="needs calibration; run `kvbench calibrate` or pass statistics"):
        parse(spec).fit(subject("llama").geometry)


def test_statistics_of_another_model_are_refused() -> None:
    other = calibrated(subject("qwen3"))
    with pytest.raises(KvbenchError, match="do not fit this model at layer 0; calibrate this model"):
        parse("pca:rank=0.5").fit(subject("llama").geometry, other)
    fewer = copy.copy(calibrated(subject("llama")))
    fewer.layers = {0: fewer.layers[0]}
    with pytest.raises(KvbenchError, match="at layer 1"):
        parse("pca:rank=0.5").fit(subject("llama").geometry, fewer)


@pytest.mark.parametrize("spec", ["palu:rank=0.5", "ftc:bits=3"])
def test_a_method_that_needs_fisher_says_so(spec: str) -> None:
    one = subject("llama")
    statistics = collect(one.model, one.geometry, token_ids(1, 40), fisher=False)
    with pytest.raises(KvbenchError, match="Fisher"):
        parse(spec).fit(one.geometry, statistics)


@pytest.mark.parametrize("spec", ALL_SPECS)
def test_fitting_is_deterministic_and_leaves_the_statistics_alone(spec: str) -> None:
    one, compressor = subject("llama"), parse(spec)
    statistics = calibrated(one) if compressor.needs_calibration else None
    before = {} if statistics is None else {name: part.clone() for name, part in statistics.tensors().items()}
    plans = [compressor.fit(one.geometry, statistics) for _ in range(2)]
    for layers in zip(*(plan.layers.values() for plan in plans), strict=True):
        first, second = (layer.codec.tensors() if layer.codec else [] for layer in layers)
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(torch.equal(statistics.tensors()[name], part) for name, part in before.items())


def test_sliding_layers_get_no_plan() -> None:
    assert list(parse("int:bits=4").fit(subject("gemma3", layers=4).geometry).layers) == [1, 3]
    with pytest.raises(UnsupportedModelError, match="int:bits=4 has nothing to compress: all 2 attention layers"):
        parse("int:bits=4").fit(subject("mistral").geometry)
    assert parse("none").fit(subject("mistral").geometry).layers == {}
    assert parse("none").fit(subject("llama").geometry).layers == {}


def test_a_model_without_rope_stores_keys_as_they_come() -> None:
    one = subject("gpt2")
    plan = parse("pca:rank=0.5").fit(one.geometry, calibrated(one))
    assert plan.frame == "after"
    assert parse("pca:rank=0.5").fit(subject("llama").geometry, calibrated(subject("llama"))).frame == "before"


def test_bits_are_spent_on_both_sides() -> None:
    """``bits`` is the mean over keys and values; ``shift`` moves them and stays within what both can hold."""
    one = subject("llama")
    for spec, expected in (
        ("kvtc:bits=3", (2, 4)),
        ("kvtc:bits=3,shift=0", (3, 3)),
        ("kvtc:bits=3,shift=-2", (4.5, 1.5)),
        ("kvtc:bits=3,shift=99", (1.5, 4.5)),
        ("kvtc:bits=8,shift=1", (8, 8)),
        ("kvtc:bits=0.02", (0, 1 / 32)),
    ):
        codec = parse(spec).fit(one.geometry, calibrated(one)).layers[0].codec
        assert tuple(sum(side.quantizer.widths) / 32 for side in (codec.keys, codec.values)) == expected


def test_ranks_and_groups_of_codecs() -> None:
    one = subject("llama")

    def sides(spec: str) -> list[tuple[int, int]]:
        codec = parse(spec).fit(one.geometry, calibrated(one)).layers[0].codec
        return [(side.groups, side.rank) for side in (codec.keys, codec.values)]

    assert sides("pca:rank=0.25") == [(1, 8), (1, 8)]
    assert sides("pca:rank=0.25,heads=each") == [(2, 4), (2, 4)]
    assert sides("palu:rank=0.25,group=1,allocate=uniform") == [(2, 4), (2, 4)]
    assert sides("palu:rank=0.25,group=3,allocate=uniform") == [(1, 8), (1, 8)]
    assert sides("int:bits=4") == [(2, 16), (2, 16)]


def test_without_statistics_a_draft_says_what_to_do() -> None:
    draft = Draft(subject("llama").geometry, None)
    with pytest.raises(KvbenchError, match="layer 0 has no statistics: this compressor needs calibration"):
        _ = next(iter(draft)).calibrated
