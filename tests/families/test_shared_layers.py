"""Layers that keep no keys and values but read those of an earlier one: Gemma 3n and Gemma 4."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from driving import Subject, as_decoded, calibrated, feed, token_ids, worst
from driving import subject as plain_subject
from tiny_configs import VOCABULARY, tiny_model
from transformers import PreTrainedModel

from kvbench.cache.attach import CompressedModel
from kvbench.cache.layer import KVLayer
from kvbench.calibration.collect import _Collector
from kvbench.codecs.frame import Frame
from kvbench.compressors.compressor import parse
from kvbench.errors import UnsupportedModelError
from kvbench.hooks.geometry import ModelGeometry, probe_geometry
from kvbench.hooks.interception import Interception
from kvbench.measure.prompt import exact_prompt

pytestmark = pytest.mark.usefixtures("fp64", "one_thread")
EXACT = 1e-10
families = pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text"])
frames = pytest.mark.parametrize("frame", ["after", "before"])


@lru_cache
def subject(family: str) -> Subject:
    """A sliding and a full layer, and one of each that reads the same."""
    model = tiny_model(family)
    return Subject(family, model, probe_geometry(model))


def ids_of(tokens: int) -> torch.Tensor:
    return token_ids(2, tokens) % VOCABULARY


@families
def test_who_reads_whom_is_measured(family: str) -> None:
    one = subject(family)
    assert one.geometry.readers == {2: 0, 3: 1}
    assert [layer.layer for layer in one.geometry.layers] == [0, 1]


@families
def test_readers_keep_nothing(family: str) -> None:
    one = subject(family)
    with one.attach(one.identity()) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids_of(30), [20, *[1] * 10])
    assert [isinstance(layer, KVLayer) for layer in cache.layers] == [True, True, False, False]
    full = one.geometry.layers[1]
    assert cache.nbytes().payload == 2 * full.elements_per_token * 8 * cache.layers[1].body.entries


@frames
@families
def test_blocks_as_decoded(family: str, frame: Frame) -> None:
    """What has left the window within a block is dropped when the last reader has seen it, not before."""
    one, ids = subject(family), ids_of(34)
    stock = one.model(ids, use_cache=False).logits
    assert worst(as_decoded(one, frame, ids), stock) < EXACT


@families
def test_a_prompt_computed_elsewhere(family: str) -> None:
    one, ids = subject(family), ids_of(34)
    stock = one.model(ids, use_cache=False).logits
    prompt = exact_prompt(one.model, one.geometry, ids[:1, :24])
    with one.attach(one.identity("before")) as compressed:
        logits = feed(one.model, prompt.fill(compressed), ids[:1], [1] * 10, start=24)
    assert worst(logits, stock[:1, 24:]) < EXACT


@families
def test_readers_attend_as_usual_while_keys_are_measured_before_rope(family: str) -> None:
    one, ids = subject(family), ids_of(30)
    stock = one.model(ids, use_cache=False).logits
    assert worst(collected_logits(one.model, one.geometry, ids), stock) < EXACT


def test_a_body_of_several_layers_is_refused_where_a_later_one_reads_one_of_them() -> None:
    one = plain_subject("llama", layers=3)
    plan = parse("xkv:rank=0.5,layers=2").fit(one.geometry, calibrated(one))
    read = replace(one.geometry, layers=one.geometry.layers[:2], readers={2: 1})
    with pytest.raises(UnsupportedModelError, match="layer 2 reads the keys and values of layer 1, which this"):
        CompressedModel(one.model, plan, read)


def collected_logits(model: PreTrainedModel, geometry: ModelGeometry, ids: torch.Tensor) -> torch.Tensor:
    with Interception(model, _Collector(geometry, fisher=False, sinks=0)):
        return model(ids, use_cache=False).logits
