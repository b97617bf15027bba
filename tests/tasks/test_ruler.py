"""RULER's tasks: what their contexts and questions hold, how long they are, and how answers are scored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.errors import KvbenchError
from kvbench.tasks.fitting import Dialogue, PromptTemplate, fitted_samples
from kvbench.tasks.names import RULER
from kvbench.tasks.ruler.haystack import hidden_in_essay, hidden_in_lines, noise_lines
from kvbench.tasks.ruler.ruler import ruler_task
from kvbench.tasks.sample import Question, Sample
from kvbench.tasks.scoring import match_all, match_any

ESSAY = [f"word{index}" + ("." if index % 11 == 10 else "") for index in range(900)]
PIECES = re.compile(r"\n|[A-Za-z]{1,6}|\d|[^\sA-Za-z\d]")


def template() -> PromptTemplate:
    """A tokenizer of short pieces, and a chat template of a few."""
    return PromptTemplate(
        (1, 2, 3),
        " end of turn ",
        " next turn ",
        lambda text: [sum(map(ord, piece)) % 997 + 4 for piece in PIECES.findall(text)],
    )


@pytest.mark.parametrize("name", RULER)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), size=st.integers(40, 900))
def test_every_reference_is_in_the_context_and_in_no_question(name: str, seed: int, size: int) -> None:
    sample = ruler_task(name, 1024, ESSAY).sample(Random(seed), size)
    for question in sample.questions:
        assert question.references and len(set(question.references)) == len(question.references)
        for reference in question.references:
            assert reference in sample.context
            given_away = reference in question.text or reference in question.answer_prefix
            assert not given_away or name == "cwe"  # whose words are short, and RULER counts parts of words


@pytest.mark.parametrize("name", RULER)
def test_the_same_seed_makes_the_same_sample(name: str) -> None:
    task = ruler_task(name, 1024, ESSAY)
    assert task.sample(Random(5), 300) == task.sample(Random(5), 300) != task.sample(Random(6), 300)


@pytest.mark.parametrize("name", RULER)
@pytest.mark.parametrize("length", [1024, 4096])
def test_samples_have_the_wanted_length_and_little_of_it_is_filler(name: str, length: int) -> None:
    task = ruler_task(name, length, ESSAY)
    newline = template().encode("\n")[-1]
    for sample in fitted_samples(task, template(), length, 3, seed=1, dialogue=Dialogue(2)):
        assert all(len(sample.context) + len(each) + task.new_tokens == length for each in sample.questions)
        assert sample.context[:3] == (1, 2, 3)
        filler = next(index for index, token in enumerate(sample.context[3:]) if token != newline)
        assert filler <= 0.02 * length + 12  # other samples' questions may be longer


@dataclass(frozen=True)
class _Uneven:
    """Questions of 9 to 20 pieces, of another length for every size."""

    metric: str = "all"
    new_tokens: int = 4

    def sample(self, random: Random, size: int) -> Sample:
        length = Random(random.random() + size).randint(9, 20)
        return Sample("a " * size, (Question("? " * length, "", ("a",)),))


@pytest.mark.parametrize("seed", range(20))
def test_a_sample_that_is_made_smaller_may_ask_a_longer_question(seed: int) -> None:
    samples = fitted_samples(_Uneven(), template(), 200, 4, seed)
    assert {len(sample.context) + len(sample.questions[0]) + 4 for sample in samples} == {200}
    assert len({len(sample.context) for sample in samples}) == 1


@pytest.mark.parametrize("length", [1024, 1300])
def test_a_conversation_takes_the_wanted_length_with_all_questions_and_answers_between(length: int) -> None:
    task = ruler_task("niah_multikey_1", length, ESSAY)
    for sample in fitted_samples(task, template(), length, 3, seed=1, dialogue=Dialogue(4, conversation=True)):
        assert len(sample.questions) == len(sample.answers) == 4
        turns = sum(map(len, sample.questions)) + sum(map(len, sample.answers[:-1]))
        assert len(sample.context) + turns + task.new_tokens == length
        for answer, references in zip(sample.answers, sample.references, strict=True):
            right = template().encode(", ".join(references) + ".")
            assert list(answer[: len(right)]) == right, "what follows is the right answer"


COUNTS = {
    "niah_single_1": (1, 1),
    "niah_single_2": (1, 1),
    "niah_single_3": (1, 1),
    "niah_multikey_1": (4, 1),
    "niah_multivalue": (4, 4),
    "niah_multiquery": (4, 4),
}


@pytest.mark.parametrize("name", COUNTS)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_counts_of_needles_and_answers(name: str, seed: int) -> None:
    needles, answers = COUNTS[name]
    sample = ruler_task(name, 1024, ESSAY).sample(Random(seed), 500)
    assert sample.context.count("One of the special magic") == needles
    assert len(sample.questions[0].references) == answers
    assert len(sample.questions) == (4 if name == "niah_multikey_1" else 1)


def test_templates_are_those_of_the_paper() -> None:
    single = ruler_task("niah_single_2", 1024, ESSAY).sample(Random(0), 60)
    key = re.search(r"One of the special magic numbers for (\S+-\S+|\S+-.*?) is: (\d{7})\.", single.context)
    assert key is not None
    assert single.context.startswith(
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
    )
    (question,) = single.questions
    assert question.text == f"\nWhat is the special magic number for {key[1]} mentioned in the provided text?"
    assert question.answer_prefix == f" The special magic number for {key[1]} mentioned in the provided text is"
    several = ruler_task("niah_multivalue", 1024, ESSAY).sample(Random(0), 60)
    assert several.context.startswith("Some special magic numbers are hidden within the following text.")
    assert several.questions[0].text.startswith("\nWhat are all the special magic numbers for ")
    assert several.questions[0].answer_prefix.endswith(" mentioned in the provided text are")
    queried = ruler_task("niah_multiquery", 1024, ESSAY).sample(Random(0), 60)
    assert queried.questions[0].text.count(", ") == 3 and ", and " in queried.questions[0].text


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), pieces=st.integers(0, 60))
def test_a_chain_of_variables_stands_in_order(seed: int, pieces: int) -> None:
    sample = ruler_task("vt", 1024, ()).sample(Random(seed), pieces)
    (question,) = sample.questions
    assert len(question.references) == 5
    value = re.search(r"assigned the value (\d{5}) in the text above", question.text)
    assert value is not None
    real = sample.context[sample.context.rindex("Memorize and track") :]
    assigned = re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)", real)
    assert assigned[0] == (question.references[0], value[1])
    assert [source for _, source in assigned[1:]] == [name for name, _ in assigned[:-1]]
    assert sample.context.count("Memorize and track") == 2  # a solved example comes first


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_common_words_are_the_most_frequent(seed: int) -> None:
    sample = ruler_task("cwe", 4096, ()).sample(Random(seed), 300)
    listed = re.findall(
        r"\d+\. ([^\d]+?)(?= \d+\. |$)", sample.context[sample.context.rindex("Below is a") :].split("\n", 1)[1]
    )
    counts = {word: listed.count(word) for word in set(listed)}
    assert {word for word, count in counts.items() if count == 30} == set(sample.questions[0].references)
    assert all(count <= 3 for word, count in counts.items() if word not in sample.questions[0].references)


def test_frequent_words_follow_the_dots() -> None:
    sample = ruler_task("fwe", 4096, ()).sample(Random(3), 800)
    words = sample.context.rsplit("words. ", 1)[1].split(" ")
    ranked = sorted(set(words), key=words.count, reverse=True)
    assert ranked[0] == "..." and tuple(ranked[1:4]) == sample.questions[0].references


def test_two_hops_need_two_documents() -> None:
    sample = ruler_task("qa_2", 1024, ()).sample(Random(2), 60)
    person = re.search(r"where (\w+) was born", sample.questions[0].text)
    assert person is not None
    town = re.search(rf"{person[1]} was born in (\w+)\.", sample.context)
    assert town is not None and town[1] not in sample.questions[0].text


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), lines=st.integers(0, 30))
def test_hidden_lines_keep_their_order(seed: int, lines: int) -> None:
    text = hidden_in_lines(Random(seed), noise_lines(5 * lines), list("abcde"), ordered=True)
    assert [line for line in text.split("\n") if len(line) == 1] == list("abcde")


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_a_needle_stands_at_its_depth(depth: float) -> None:
    text = hidden_in_essay(Random(0), ESSAY, 800, ["NEEDLE."], depth)
    assert text.index("NEEDLE") / len(text) == pytest.approx(depth, abs=0.02)


def test_metrics_are_those_of_the_paper() -> None:
    assert match_all("it is 123\x00 and ABC", ("123", "abc", "xyz")) == pytest.approx(2 / 3)
    assert match_any("The Eiffel Tower.", ("eiffel tower", "tour eiffel")) == 1
    assert match_any("Paris", ("London",)) == 0


def test_what_does_not_fit_is_one_line() -> None:
    with pytest.raises(KvbenchError, match="60 tokens are too few for a sample of Needles; take more"):
        fitted_samples(ruler_task("niah_single_2", 60, ESSAY), template(), 60, 1, 0)
    with pytest.raises(KvbenchError, match="unknown task 'niah_single_9'"):
        ruler_task("niah_single_9", 1024, ESSAY)
