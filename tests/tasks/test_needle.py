"""Every compressor still finds a needle at 4 real bits or more: one prefill of 1,024 tokens serves them all."""

from __future__ import annotations

import pytest

from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.measure.bench import CalibrationSource, ModelBench
from kvbench.measure.prompt import exact_prompt
from kvbench.models.loading import load
from kvbench.tasks.needle import needle
from kvbench.texts.splits import documents

MODEL = "smollm2-135m-instruct-q4_1"
SOURCE = CalibrationSource("essays", 4, 512)

ANSWERING = [
    "none",
    "hf",
    "identity:recent=0",
    "identity:frame=before,recent=0",
    "int:bits=8,recent=0",
    "int:bits=4,recent=0",
    "kivi:bits=4,recent=0",
    "pca:rank=0.75,recent=0",
    "palu:rank=0.75,recent=0",
    "pca:rank=0.9,recent=0+int:bits=4",
    "kvtc:bits=4,recent=0",
    "ftc:bits=4,recent=0",
]


@pytest.fixture(scope="module")
def bench(smollm2) -> ModelBench:  # the fixture skips loudly, or fails in CI, when the model cannot be had
    return ModelBench(MODEL)


@pytest.fixture(scope="module")
def hidden(bench):
    haystack = " ".join(documents("essays", "test")["text"][:4])
    found = needle(bench.loaded.tokenizer, haystack, 1024, depth=0.5)
    ids = bench.loaded.tokenizer(found.prompt, return_tensors="pt", add_special_tokens=False).input_ids
    return found, exact_prompt(bench.loaded.model, bench.geometry, ids)


@pytest.mark.model
@pytest.mark.parametrize("spec", ANSWERING)
def test_compressor_finds_the_needle(bench, hidden, spec):
    found, prompt = hidden
    arm: Arm = bench.arm(parse(spec), SOURCE)
    token = prompt.logits.argmax(-1, keepdim=True)
    tokens = [int(token)]
    with arm.entered():
        cache = arm.fill(prompt)
        for _ in range(11):
            token = arm.forward(token, cache)[:, -1].argmax(-1, keepdim=True)
            tokens.append(int(token))
    completion = bench.loaded.tokenizer.decode(tokens)
    assert found.found_in(completion), f"{spec} answered {completion!r}, not {found.answer}"


@pytest.mark.model
def test_a_compressor_that_keeps_only_the_window_misses_it(bench, hidden):
    """The task discriminates: with the needle's tokens dropped, nothing can answer."""
    found, prompt = hidden
    arm = bench.arm(parse("streaming:recent=32"), SOURCE)
    token = prompt.logits.argmax(-1, keepdim=True)
    tokens = [int(token)]
    with arm.entered():
        cache = arm.fill(prompt)
        for _ in range(11):
            token = arm.forward(token, cache)[:, -1].argmax(-1, keepdim=True)
            tokens.append(int(token))
    # The first token comes from the exact prefill; the rest of the number has to come out of the cache.
    assert not found.found_in(bench.loaded.tokenizer.decode(tokens))


def test_needle_sits_at_its_depth_and_fits():
    tokenizer = load("random:llama").tokenizer
    haystack = "All of this is about writing. " * 200
    early, late = (needle(tokenizer, haystack, 1500, depth) for depth in (0.1, 0.9))
    for made in (early, late):
        assert len(tokenizer(made.prompt).input_ids) <= 1500
        assert made.answer in made.prompt and made.prompt.endswith("is")
    assert early.prompt.index(early.answer) < late.prompt.index(late.answer)


def test_no_room_for_a_haystack():
    with pytest.raises(KvbenchError, match="room"):
        needle(load("random:llama").tokenizer, "One. Two. Three. " * 50, 40, 0.5)


def test_seed_changes_key_and_answer():
    tokenizer = load("random:llama").tokenizer
    made = {needle(tokenizer, "It is so. " * 300, 1200, 0.5, seed).answer for seed in range(4)}
    assert len(made) == 4
