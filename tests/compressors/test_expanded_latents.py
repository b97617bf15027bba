"""``hf:latents=expanded``: keys and values of latent attention as transformers cached them before it kept latents."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from driving import feed, left_padding, subject, token_ids, worst

from kvbench.compressors.compressor import parse
from kvbench.errors import UnsupportedModelError
from kvbench.measure.arms import Arm
from kvbench.measure.memory import measure_filled, walk
from kvbench.measure.prompt import exact_prompt

pytestmark = pytest.mark.usefixtures("fp64")
EXACT = 1e-10
FAMILIES = ("deepseek_v2", "deepseek_v3", "minicpm3")
SPEC = "hf:latents=expanded"


def expanded(family: str, dtype: torch.dtype = torch.float64) -> Arm:
    one = subject(family, dtype)
    return Arm.of(SPEC, one.model, one.geometry, None, parse(SPEC).stock)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_the_stock_model(family: str) -> None:
    """Prompt, chunk and steps, padded and cropped; filled from a prompt it goes on as prefilled."""
    arm, ids, mask = expanded(family), token_ids(2, 34), left_padding(2, 34, (7, 0))
    stock = arm.model(ids, use_cache=False).logits
    padded = feed(arm.model, subject(family).stock_cache(), ids, (13, 11, *[1] * 10), mask)
    prompt = exact_prompt(arm.model, arm.geometry, ids[:1, :30])
    with arm.entered():
        cache = arm.new_cache()
        assert worst(feed(arm.model, cache, ids, (13, 11, *[1] * 10)), stock) < EXACT
        cache.crop(-4)
        twin = deepcopy(cache)
        for each in (cache, twin):
            assert worst(feed(arm.model, each, ids, (1, 3), start=30), stock[:, 30:]) < EXACT
        assert worst(feed(arm.model, arm.new_cache(), ids, (13, 11, *[1] * 10), mask), padded, mask) < EXACT
        filled = feed(arm.model, arm.fill(prompt, 2), ids[:1].expand(2, -1), [1] * 4, start=30)
        assert worst(filled, stock[:1, 30:].expand(2, -1, -1)) < EXACT
        assert worst(arm.model(ids, use_cache=False).logits, stock) < EXACT
    assert not any("expand_kv" in vars(module) for module in arm.model.modules())
    assert torch.equal(arm.model(ids, use_cache=False).logits, stock)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_expands_the_new_token_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arm, ids, seen = expanded(family), token_ids(1, 20), []
    with arm.entered():
        cache = arm.new_cache()
        arm.forward(ids[:, :19], cache)
        kinds = {type(module) for module in arm.model.modules() if hasattr(module, "expand_kv")}
        for kind in kinds:
            expand = kind.expand_kv
            monkeypatch.setattr(
                kind, "expand_kv", lambda *given, expand=expand: (seen.append(given[1].shape[2]), expand(*given))[1]
            )
        arm.forward(ids[:, 19:], cache)
    assert seen == [1] * len(arm.geometry.layers)


def test_every_head_takes_its_bytes() -> None:
    arm = expanded("deepseek_v3", torch.float32)
    config, tokens = arm.model.config, 40
    width = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    elements = config.num_hidden_layers * config.num_attention_heads * width * tokens
    memory = measure_filled(arm, exact_prompt(arm.model, arm.geometry, token_ids(1, tokens)), steps=0)
    assert memory.allocated.total == memory.predicted_bytes == 4 * elements
    with arm.entered():
        cache = arm.new_cache()
        arm.forward(token_ids(3, tokens), cache)
    assert walk(cache).total == 3 * 4 * elements


def test_a_model_without_latents_is_refused_in_one_line() -> None:
    with pytest.raises(UnsupportedModelError, match=r"^hf:latents=expanded: \w+ has no multi-head latent.*take hf$"):
        expanded("llama").new_cache()
