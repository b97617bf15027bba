"""Answers through compressed caches: the same as stock's where nothing is lost, and harmed by every broken codec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import ANY

import pytest
import torch
from torch import Tensor

from kvbench.codecs.codec import Codec
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.measure import tasks as tasks_module
from kvbench.measure.bench import CalibrationSource, ModelBench
from kvbench.measure.parts.tasks import TaskScore, TasksWorkload
from kvbench.measure.quality import QualityBench
from kvbench.measure.tasks import TaskBench, essay_words
from kvbench.report.verdicts import judged
from kvbench.tasks.fitting import Dialogue, PromptTemplate
from kvbench.tasks.names import RULER
from kvbench.tasks.ruler.needles import Needles
from kvbench.tasks.ruler.ruler import ruler_task

Broken = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Keys and values, and what a codec with a mistake makes of them."""

MODEL = "smollm2-135m-instruct-q4_1"
SOURCE = CalibrationSource("essays", 4, 512)
ANSWERING = [
    "hf",
    "identity:frame=before,recent=0",
    "int:bits=4,recent=0",
    "kivi:bits=4,recent=0",
    "kvtc:bits=4,recent=0",
    "ftc:bits=4,recent=0",
    "ftc:bits=4,frame=bands,recent=0",
]


@pytest.fixture(scope="module")
def tiny() -> ModelBench:
    return ModelBench("random:llama?context=4096", dtype="float64")


@pytest.mark.parametrize("name", RULER)
def test_none_answers_like_stock_letter_by_letter(tiny: ModelBench, name: str) -> None:
    task = replace(ruler_task(name, 3800, ["some", "words.", "stand", "here."] * 50), new_tokens=16)
    template = PromptTemplate.of(tiny.loaded.tokenizer, chat=False)
    (score,) = TaskBench.of(tiny, {name: (task, 3800)}, template, 1, seed=1).answers(tiny.arm(parse("hf"), SOURCE))
    assert score.identical and any(answer.baseline for answer in score.answers)


def test_several_questions_are_put_to_one_context(tiny: ModelBench) -> None:
    task = Needles("essay", ["some", "words.", "stand", "here."] * 50, keys=4)
    bench = TaskBench.of(
        tiny, {"four": (task, 1500)}, PromptTemplate.of(tiny.loaded.tokenizer, chat=False), 2, 1, Dialogue(3)
    )
    (score,) = bench.answers(tiny.none())
    assert [answer.sample for answer in score.answers] == [0, 1] * 3
    assert len({(answer.sample, answer.question) for answer in score.answers}) == 6
    assert len(score.by_sample()[0]) == 2, "questions about one context are not independent samples"


def test_contexts_are_prefilled_once_for_all_arms(tiny: ModelBench, monkeypatch: pytest.MonkeyPatch) -> None:
    prefilled, real = list[int](), tasks_module.exact_prompt
    monkeypatch.setattr(tasks_module, "exact_prompt", lambda *given: prefilled.append(1) or real(*given))
    task = Needles("essay", ["some", "words.", "stand", "here."] * 50, new_tokens=4)
    bench = TaskBench.of(tiny, {"one": (task, 900)}, PromptTemplate.of(tiny.loaded.tokenizer, chat=False), 2, 1)
    for spec in ("identity", "int:bits=8", "none"):
        bench.answers(tiny.arm(parse(spec), SOURCE))
    assert len(prefilled) == 1


def test_a_conversation_is_one_text_of_questions_and_right_answers(tiny: ModelBench) -> None:
    task = Needles("essay", ["some", "words.", "stand", "here."] * 50, keys=3, new_tokens=12)
    template = PromptTemplate.of(tiny.loaded.tokenizer, chat=False, conversation=True)
    bench = TaskBench.of(tiny, {"turns": (task, 1200)}, template, 2, 1, Dialogue(3, conversation=True))
    (score,) = bench.answers(tiny.arm(parse("identity"), SOURCE))
    assert [answer.turn for answer in score.answers] == [1, 1, 2, 2, 3, 3] and score.identical
    decode = tiny.loaded.tokenizer.decode
    for row, sample in enumerate(bench.samples["turns"][1]):
        text = [*sample.context]
        for turn, question in enumerate(sample.questions):
            ids = torch.tensor([[*text, *question]])
            made = tiny.loaded.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
            answer = score.answers[2 * turn + row].compressed
            assert str(decode(made, skip_special_tokens=True)).startswith(answer) and answer
            text = [*ids[0].tolist(), *sample.answers[turn]]


def test_a_query_aware_context_is_compressed_with_all_of_its_question_but_the_last_token(tiny: ModelBench) -> None:
    task = Needles("essay", ["some", "words.", "stand", "here."] * 50, keys=3, new_tokens=12)
    template = PromptTemplate.of(tiny.loaded.tokenizer, chat=False)
    answers = {}
    for aware in (False, True):
        bench = TaskBench.of(tiny, {"aware": (task, 900)}, template, 2, 1, Dialogue(2, query_aware=aware))
        (score,) = bench.answers(tiny.arm(parse("identity"), SOURCE))
        assert score.identical
        answers[aware] = [answer.baseline for answer in score.answers]
        ((_, samples),) = bench.samples.values()
        for cache, ids in bench.filled(tiny.none(), samples):
            together = len(samples[0].context) + len(samples[0].questions[0])
            assert cache.get_seq_length() + ids.shape[1] == together
            assert ids.shape[1] == (1 if aware else len(samples[0].questions[0]))
    assert answers[True] == answers[False], "without loss it makes no difference when a context is compressed"


def test_a_conversation_cannot_be_query_aware() -> None:
    with pytest.raises(ValueError, match="set conversation to false"):
        TasksWorkload(query_aware=True, conversation=True)


CHAT = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}</>{% endfor %}<assistant>"
ONE_TURN = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}" + CHAT


def test_several_turns_are_rendered_for_conversations_alone(tiny: ModelBench, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny.loaded.tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    one, several = (PromptTemplate.of(tokenizer, chat=True, conversation=turns) for turns in (False, True))
    assert (one.before, one.after, one.between) == (several.before, "</><assistant>", "")
    assert (several.after, several.between) == (one.after, "</><user>")
    monkeypatch.setattr(tokenizer, "chat_template", ONE_TURN)
    assert PromptTemplate.of(tokenizer, chat=True) == one.__class__(one.before, one.after, "", ANY)


def test_a_model_without_a_chat_template_is_refused(tiny: ModelBench) -> None:
    with pytest.raises(KvbenchError, match="no chat template; set chat to false"):
        PromptTemplate.of(tiny.loaded.tokenizer, chat=True)


@pytest.fixture(scope="module")
def bench(smollm2: object) -> ModelBench:  # the fixture skips loudly, or fails in CI, when the model cannot be had
    return ModelBench(MODEL)


@pytest.fixture(scope="module")
def needles(bench: ModelBench) -> TaskBench:
    """Three needles in the middle of 512 tokens of essays."""
    task = Needles("essay", essay_words("essays", "test"), depth=0.5, new_tokens=12)
    return TaskBench.of(bench, {"needle": (task, 512)}, PromptTemplate.of(bench.loaded.tokenizer, chat=True), 3, seed=3)


@pytest.mark.model
@pytest.mark.parametrize("spec", ANSWERING)
def test_compressors_of_4_bits_find_every_needle(bench: ModelBench, needles: TaskBench, spec: str) -> None:
    (score,) = needles.answers(bench.arm(parse(spec), SOURCE))
    assert score.baseline == 1, "the task can be done"
    assert score.score == 1, [(answer.compressed, answer.references) for answer in score.answers]


@pytest.mark.model
def test_a_compressor_that_keeps_only_the_window_finds_none(bench: ModelBench, needles: TaskBench) -> None:
    (score,) = needles.answers(bench.arm(parse("streaming:recent=32"), SOURCE))
    assert score.score == 0


def shuffled_values(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.randperm(values.shape[-1], generator=torch.Generator().manual_seed(0))
    return keys, values[..., order]


def keys_off_by_one(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return keys.roll(1, dims=2), values


def one_head_zeroed(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    zeroed = values.clone()
    zeroed[:, 0] = 0
    return keys, zeroed


def sinks_lost(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """With ``sinks=0`` the first tokens are in the body."""
    if keys.shape[2] < 64:
        return keys, values
    lost = keys.clone()
    lost[:, :, :4] = 0
    return lost, values


def rotated_twice(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The prompt's keys as if they stood at twice their position (RoPE of base 100,000 over halves)."""
    half, tokens = keys.shape[-1] // 2, keys.shape[2]
    if tokens < 64:
        return keys, values
    angles = torch.arange(tokens)[:, None] * 100_000.0 ** (-torch.arange(half) / half)
    cos, sin = angles.cos().to(keys.dtype), angles.sin().to(keys.dtype)
    first, second = keys.split(half, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1), values


ON_TASKS = [shuffled_values, keys_off_by_one, one_head_zeroed, rotated_twice]
"""Nothing is retrieved worse for want of the first tokens; that is seen in distributions."""

DECISIVE = ("niah_multiquery",)


@pytest.fixture(scope="module")
def tasks(bench: ModelBench) -> TaskBench:
    """Seven samples of tasks that the model can do: as few as can show harm."""
    essay = essay_words("essays", "test")
    by_name = {name: (replace(ruler_task(name, 384, essay), new_tokens=32), 384) for name in DECISIVE}
    return TaskBench.of(bench, by_name, PromptTemplate.of(bench.loaded.tokenizer, chat=True), 7, seed=5)


def answers(bench: ModelBench, tasks: TaskBench) -> tuple[TaskScore, ...]:
    return tasks.answers(bench.arm(parse("identity:recent=0,sinks=0"), SOURCE))


@pytest.mark.model
def test_a_codec_that_loses_nothing_is_unharmed(bench: ModelBench, tasks: TaskBench) -> None:
    judgement = judged(answers(bench, tasks), 0.05)
    assert judgement.verdict == "unharmed" and len(judgement.deciding) == len(DECISIVE)


@pytest.fixture
def encode_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Broken], None]:
    """Let all codecs encode what a function makes of keys and values."""
    encode = Codec.encode

    def use(broken: Broken) -> None:
        monkeypatch.setattr(Codec, "encode", lambda codec, keys, values: encode(codec, *broken(keys, values)))

    return use


@pytest.mark.model
@pytest.mark.parametrize("broken", ON_TASKS)
def test_broken_codecs_are_harmed_in_tasks(
    bench: ModelBench, tasks: TaskBench, broken: Broken, encode_with: Callable[[Broken], None]
) -> None:
    encode_with(broken)
    judgement = judged(answers(bench, tasks), 0.05)
    told = [(each.task.task, each.task.score, each.verdict) for each in judgement.tasks]
    assert judgement.verdict == "harmed", told


@pytest.fixture(scope="module")
def quality(bench: ModelBench) -> QualityBench:
    return QualityBench(bench.none(), bench.evaluation_windows("essays", 320, 2).ids, prefix=224, block=95)


@pytest.mark.model
@pytest.mark.parametrize("broken", [*ON_TASKS, sinks_lost])
def test_broken_codecs_move_distributions(
    bench: ModelBench, quality: QualityBench, broken: Broken, encode_with: Callable[[Broken], None]
) -> None:
    encode_with(broken)
    result = quality.score(bench.arm(parse("identity:recent=0,sinks=0"), SOURCE))
    assert min(result.per_document_kld) > 0.02 > 1000 * result.noise_floor_kld
