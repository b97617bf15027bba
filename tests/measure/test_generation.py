"""Completions side by side: the same prompt twice, and what separates them."""

import pytest
import torch
from driving import calibrated, subject
from fp64 import one_thread

from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.measure.generation import SideBySide, complete, prompt_ids, side_by_side
from kvbench.models.loading import LoadedModel
from kvbench.models.random_models import byte_tokenizer

__all__ = ["one_thread"]

PROMPT = "The quick brown fox jumps over the lazy dog"


@pytest.fixture
def loaded() -> LoadedModel:
    return LoadedModel("random:llama", subject("llama", torch.float32).model, byte_tokenizer(), "", 256)


def arm_of(spec: str) -> Arm:
    one, parsed = subject("llama", torch.float32), parse(spec)
    plan = None if parsed.baseline == "hf" else parsed.fit(one.geometry, calibrated(one))
    return Arm.of(spec, one.model, one.geometry, plan)


def compare(loaded: LoadedModel, spec: str, tokens: int = 12) -> SideBySide:
    return side_by_side(loaded, arm_of("none"), arm_of(spec), prompt_ids(loaded, PROMPT, tokens), tokens)


def test_lossless_completions_never_part(loaded: LoadedModel):
    for spec in ("none", "hf", "identity:recent=4,block=4"):
        pair = compare(loaded, spec)
        assert pair.diverges_at is None and pair.compressed.tokens == pair.uncompressed.tokens
        assert pair.prompt_tokens == len(PROMPT) and len(pair.compressed.tokens) == 12


def test_lossy_completion_parts_at_the_first_different_token(loaded: LoadedModel):
    pair = compare(loaded, "int:bits=2,sinks=0,recent=0,block=4", tokens=40)
    plain, packed = pair.uncompressed.tokens, pair.compressed.tokens
    at = pair.diverges_at
    assert at is not None and plain[:at] == packed[:at] and plain[at] != packed[at]
    assert pair.compressed.cache_bytes < pair.uncompressed.cache_bytes
    assert pair.compressed.body_tokens > 60 and pair.uncompressed.body_tokens == 0


def test_uncompressed_completion_is_greedy_decoding_of_the_stock_model(loaded: LoadedModel):
    ids = prompt_ids(loaded, PROMPT, 8)
    expected = ids
    for _ in range(8):
        with torch.no_grad():
            expected = torch.cat([expected, loaded.model(expected).logits[:, -1:].argmax(-1)], 1)
    completion = complete(loaded, arm_of("none"), ids, 8)
    assert list(completion.tokens) == expected[0, ids.shape[1] :].tolist()
    assert completion.text == loaded.tokenizer.decode(list(completion.tokens))


def test_short_prompts_stay_exact(loaded: LoadedModel):
    pair = compare(loaded, "int:bits=2")
    assert pair.compressed.body_tokens == 0 and pair.diverges_at is None


def test_an_early_end_of_one_completion_is_where_they_part(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    lengths = iter([5, 3])
    real = complete
    monkeypatch.setattr(
        "kvbench.measure.generation.complete", lambda loaded, arm, ids, _: real(loaded, arm, ids, next(lengths))
    )
    assert compare(loaded, "none").diverges_at == 3


@pytest.mark.parametrize("prompt", ["", " \n\t"])
def test_empty_prompt_is_refused(loaded: LoadedModel, prompt: str):
    with pytest.raises(KvbenchError, match="the prompt is empty"):
        prompt_ids(loaded, prompt, 8)


@pytest.mark.parametrize("tokens", [0, -1])
def test_nothing_to_generate_is_refused(loaded: LoadedModel, tokens: int):
    with pytest.raises(KvbenchError, match=f"at least 1 new token is needed, got {tokens}"):
        prompt_ids(loaded, PROMPT, tokens)


def test_context_is_the_limit(loaded: LoadedModel):
    assert prompt_ids(loaded, "x" * 200, 56).shape == (1, 200)
    with pytest.raises(KvbenchError, match=r"200 tokens\) and 57 new tokens exceed .* random:llama \(256 tokens\)"):
        prompt_ids(loaded, "x" * 200, 57)


def test_chat_needs_a_template(loaded: LoadedModel):
    with pytest.raises(KvbenchError, match="no chat template; leave out --chat"):
        prompt_ids(loaded, PROMPT, 8, chat=True)
    loaded.tokenizer.chat_template = "<{{ messages[0]['content'] }}>"
    assert loaded.tokenizer.decode(prompt_ids(loaded, "hi", 8, chat=True)[0]) == "<hi>"


@pytest.mark.model
def test_default_model_completes_sensibly_with_4_bits(smollm2: LoadedModel):
    from kvbench.hooks.geometry import probe_geometry

    geometry = probe_geometry(smollm2.model)
    arms = [
        Arm.of(spec, smollm2.model, geometry, parse(spec).fit(geometry))
        for spec in ("none", "int:bits=8,recent=8,block=8")
    ]
    ids = prompt_ids(smollm2, "What is the capital of France?", 12, chat=True)
    pair = side_by_side(smollm2, *arms, ids, 12)
    assert "Paris" in pair.uncompressed.text and "Paris" in pair.compressed.text
    assert pair.compressed.body_tokens > 0
