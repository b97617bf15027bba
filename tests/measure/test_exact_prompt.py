"""A cache filled from one exact prompt is the cache that sat in the model during the prefill, for every compressor."""

from __future__ import annotations

import pytest
import torch
from default_specs import ALL_SPECS
from driving import calibrated, feed, subject, token_ids, worst
from fp64 import fp64, one_thread

from kvbench.cache.prediction import predict_bytes
from kvbench.compressors.compressor import parse
from kvbench.measure.prompt import exact_prompt

__all__ = ["fp64", "one_thread"]
pytestmark = pytest.mark.usefixtures("fp64", "one_thread")
EXACT = 1e-10
PROMPT, NEW = 110, 6
ATTACHED_SPECS = [spec for spec in ALL_SPECS if parse(spec).baseline in (None, "none")]


def both_ways(family: str, spec: str, rows: int) -> tuple[float, object, object, int]:
    """Largest difference of the next logits, bytes of both caches, and the predicted bytes."""
    one, compressor = subject(family), parse(spec)
    ids = token_ids(1, PROMPT + NEW)
    prompt = exact_prompt(one.model, one.geometry, ids[:, :PROMPT]).repeat(rows)
    plan = compressor.fit(one.geometry, calibrated(one) if compressor.needs_calibration else None)
    many = ids.expand(rows, -1)
    with one.attach_untested(plan) as compressed:
        attended, filled = compressed.new_cache(), prompt.fill(compressed)
        feed(one.model, attended, many, [PROMPT])
        sizes = filled.nbytes(), attended.nbytes()
        logits = [feed(one.model, cache, many, [2, *[1] * (NEW - 2)], start=PROMPT) for cache in (filled, attended)]
    return worst(*logits), *sizes, predict_bytes(plan, one.geometry, PROMPT, rows)


@pytest.mark.parametrize("spec", ATTACHED_SPECS)
def test_filled_equals_attended(spec: str) -> None:
    difference, filled, attended, _ = both_ways("llama", spec, rows=2)
    assert difference < EXACT
    assert filled == attended


@pytest.mark.parametrize("family", ["gemma3", "mistral", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("spec", ["none", "kivi:bits=2", "pca:rank=0.5"])
def test_filled_equals_attended_in_other_families(family: str, spec: str) -> None:
    """Sliding windows are trimmed when they are filled, too."""
    difference, filled, attended, predicted = both_ways(family, spec, rows=1)
    assert difference < EXACT
    assert filled == attended
    assert filled.total == pytest.approx(predicted, rel=0.01)


@pytest.mark.parametrize("spec", ["none", "kivi:bits=2,recent=200", "int:bits=4"])
def test_caches_filled_from_one_prompt_leave_it_and_each_other_alone(spec: str) -> None:
    one, ids = subject("llama"), token_ids(1, PROMPT + NEW)
    prompt = exact_prompt(one.model, one.geometry, ids[:, :PROMPT])
    before = {index: (layer.rotated.clone(), layer.values.clone()) for index, layer in prompt.layers.items()}
    with one.attach_untested(parse(spec).fit(one.geometry)) as compressed:
        first, second = prompt.fill(compressed), prompt.fill(compressed)
        untouched = feed(one.model, prompt.fill(compressed), ids, [NEW], start=PROMPT)
        first.crop(-3)
        feed(one.model, first, token_ids(1, PROMPT + NEW, seed=5), [3, 1, 1], start=PROMPT - 3)
        assert worst(feed(one.model, second, ids, [NEW], start=PROMPT), untouched) < EXACT
    for index, layer in prompt.layers.items():
        assert torch.equal(layer.rotated, before[index][0]) and torch.equal(layer.values, before[index][1])
