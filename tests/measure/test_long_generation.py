"""Long texts: equal where nothing is lost, marked where they part, and with the bytes of a cache of their length."""

from __future__ import annotations

import pytest
import torch

from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.measure.bench import CalibrationSource, ModelBench
from kvbench.measure.long_generation import GenerationBench, repeated_share
from kvbench.measure.memory import walk
from kvbench.measure.parts.generation import GenerationWorkload

SOURCE = CalibrationSource("essays", 2, 128)


@pytest.fixture(scope="module")
def bench() -> ModelBench:
    return ModelBench("random:llama?context=512", dtype="float64")


@pytest.fixture(scope="module", params=[0.0, 0.7], ids=["greedy", "sampled"])
def texts(request: pytest.FixtureRequest, bench: ModelBench) -> GenerationBench:
    return GenerationBench.of(bench, GenerationWorkload(prompts=3, prompt=24, tokens=80, temperature=request.param))


@pytest.mark.parametrize("spec", ["hf", "identity:recent=0,block=8"])
def test_a_cache_that_loses_nothing_writes_the_same_text(bench: ModelBench, texts: GenerationBench, spec: str) -> None:
    result = texts.score(bench.arm(parse(spec), SOURCE))
    assert result.same_prefix == 1 and result.first_divergence is None and result.length_ratio == 1
    assert result.excess_drift == 0 and any(text.baseline_drift for text in result.texts), "the prompts did change"
    assert result.kld_mean is not None and abs(result.kld_mean) < 1e-9


def test_a_lossy_cache_parts_where_the_texts_say(bench: ModelBench, texts: GenerationBench) -> None:
    result = texts.score(bench.arm(parse("int:bits=2,recent=0,block=8,sinks=0"), SOURCE))
    assert result.kld_mean is not None and result.kld_mean > 1e-4
    assert 0 <= result.same_prefix < 1 and result.first_divergence is not None
    for text in result.texts:
        assert (text.diverges_at is None) == (text.compressed == text.baseline and text.tokens == text.baseline_tokens)


def test_memory_over_time_is_walked_a_row(bench: ModelBench, texts: GenerationBench) -> None:
    arm = bench.arm(parse("int:bits=4,recent=0,block=8"), SOURCE)
    memory = texts.score(arm).memory
    prompt = texts.prompts.shape[1]
    assert [each.tokens for each in memory] == [prompt, prompt + 32, prompt + 64]
    with arm.entered():
        cache = arm.new_cache()
        arm.forward(texts.prompts, cache)
    assert memory[0].bytes == walk(cache).total / 3
    uncompressed = texts.score(bench.none()).memory
    assert all(each.bytes < same.bytes for each, same in zip(memory, uncompressed, strict=True))


def test_a_prompt_and_text_beyond_the_context_is_refused(bench: ModelBench) -> None:
    with pytest.raises(KvbenchError, match=r"generation .* needs 624 tokens, but the context .* ends at 512; shorten"):
        GenerationBench.of(bench, GenerationWorkload(prompt=24, tokens=600))


def test_repetition_counts_runs_of_four() -> None:
    assert repeated_share([1, 2, 3, 4, 5]) == 0 == repeated_share([1, 2])
    assert repeated_share([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repeated_share([7] * 13) == pytest.approx(9 / 10)


@pytest.mark.model
def test_a_chat_prompt_asks_to_go_on(smollm2: object) -> None:
    bench = ModelBench("smollm2-135m-instruct-q4_1")
    prompts = GenerationBench.of(bench, GenerationWorkload(prompts=2, prompt=32, chat=True, tokens=8)).prompts
    first = str(bench.loaded.tokenizer.decode(prompts[0]))
    assert first.count("<|im_start|>user") == 1 and "Go on with this text" in first
    assert first.endswith("<|im_start|>assistant\n") and torch.equal(prompts[0, :4], prompts[1, :4])
