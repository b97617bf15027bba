"""Samples in tokens: as long as wanted and never longer, all of a task alike, so that they make a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from transformers import PreTrainedTokenizerBase

from kvbench.errors import KvbenchError
from kvbench.models.chat import rendered_chat
from kvbench.tasks.sample import Sample, Task

_MARK, _ANSWER, _NEXT = "\u2402", "\u2403", "\u2404"
_MOST = 1 << 22


@dataclass(frozen=True)
class PromptTemplate:
    """What stands around a user's words: tokens before them, a text behind, and, for conversations, one ``between`` an
    answer and the user's next words. ``encode`` makes tokens of text."""

    before: tuple[int, ...]
    after: str
    between: str
    encode: Callable[[str], list[int]]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, chat: bool, conversation: bool = False) -> PromptTemplate:
        """A turn of the model's chat template, or two of a ``conversation``; without ``chat`` the tokens alone that any
        text begins with.

        Raises:
            KvbenchError: ``chat`` without a chat template, or one that changes what is said.
        """

        def encode(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False).input_ids)

        if not chat:
            return cls(tuple(tokenizer("").input_ids), "", "\n" if conversation else "", encode)
        if not tokenizer.chat_template:
            raise KvbenchError(f"{tokenizer.name_or_path or 'this tokenizer'} has no chat template; set chat to false")
        turns = [{"role": "user", "content": _MARK}]
        if conversation:  # not every template has more turns than one
            turns += [{"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _NEXT}]
        rendered = rendered_chat(tokenizer, turns)
        before, mark, rest = rendered.partition(_MARK)
        after, between = rest, ""
        if conversation:
            told, next_words, after = rest.partition(_NEXT)
            between = told.partition(_ANSWER)[2]
            mark = mark and next_words and between
        if not mark:
            raise KvbenchError("the chat template does not keep the user's words as they are; set chat to false")
        return cls(tuple(encode(before)), after, between, encode)


@dataclass(frozen=True)
class FittedSample:
    """``context`` (tokens) is compressed before any of ``questions`` (tokens each) follows it.

    ``answers``, of a conversation: the right answer to each question and what stands before the next one, in tokens.
    """

    context: tuple[int, ...]
    questions: tuple[tuple[int, ...], ...]
    references: tuple[tuple[str, ...], ...]
    answers: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Dialogue:
    """At most ``questions`` are taken of a sample: each put to the context alone, or, in a conversation, after the
    questions before it and the right answers to them. ``query_aware``: with the context, before it is compressed."""

    questions: int = 1
    conversation: bool = False
    query_aware: bool = False


ONE = Dialogue()


def fitted_samples(
    task: Task, template: PromptTemplate, length: int, count: int, seed: int, dialogue: Dialogue = ONE
) -> list[FittedSample]:
    """``count`` samples whose context, questions and answer take exactly ``length`` tokens together.

    Of questions that are put alone the longest counts, of a conversation all with the answers between them. Each sample
    is as large as fits; what its unit leaves over are newlines in front of the context, of shorter questions, and
    behind shorter answers.

    Raises:
        KvbenchError: the task does not fit, or its context does not grow to the length.
    """
    samples = [_largest(task, template, length, f"{seed} {index}", dialogue) for index in range(count)]
    while True:
        question = max(len(each) for sample in samples for each in sample.questions)
        answer = max((len(each) for sample in samples for each in sample.answers), default=0)
        longest = _after_context(max(len(sample.questions) for sample in samples), question, answer, dialogue)
        room = length - task.new_tokens - longest
        too_long = [index for index, sample in enumerate(samples) if len(sample.context) > room]
        if not too_long:
            break
        for index in too_long:  # another sample's questions are longer, and those of a smaller sample may be, too
            samples[index] = _largest(task, template, length, f"{seed} {index}", dialogue, longest)
    newline = template.encode("\n")[-1]
    fitted = []
    for sample in samples:
        filler = (newline,) * (room - len(sample.context))
        head = len(template.before)
        fitted.append(
            FittedSample(
                sample.context[:head] + filler + sample.context[head:],
                tuple((newline,) * (question - len(each)) + each for each in sample.questions),
                sample.references,
                tuple(each + (newline,) * (answer - len(each)) for each in sample.answers),
            )
        )
    return fitted


def _after_context(questions: int, question: int, answer: int, dialogue: Dialogue) -> int:
    """Tokens behind the context, of so many questions and answers of these lengths."""
    return questions * (question + answer) - answer if dialogue.conversation else question


def _tail(sample: FittedSample, dialogue: Dialogue) -> int:
    """Tokens that ``sample`` needs behind its context, padded to its longest question and answer."""
    answer = max(map(len, sample.answers), default=0)
    return _after_context(len(sample.questions), max(map(len, sample.questions)), answer, dialogue)


def _largest(
    task: Task, template: PromptTemplate, length: int, seed: str, dialogue: Dialogue, tail: int = 0
) -> FittedSample:
    """The largest sample of a seed within ``length`` tokens, with its answer and at least ``tail`` behind it."""

    def made(size: int) -> FittedSample:
        return _encoded(task.sample(Random(seed), size), template, dialogue)

    def fits(sample: FittedSample) -> bool:
        return len(sample.context) + max(tail, _tail(sample, dialogue)) + task.new_tokens <= length

    low, high = 1, 2
    if not fits(made(low)):
        raise KvbenchError(f"{length} tokens are too few for a sample of {type(task).__name__}; take more")
    while fits(made(high)):
        low, high = high, 2 * high
        if high > _MOST:
            raise KvbenchError(f"samples of {type(task).__name__} do not grow to {length} tokens")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(made(middle)) else (low, middle)
    return made(low)


def _encoded(sample: Sample, template: PromptTemplate, dialogue: Dialogue) -> FittedSample:
    taken = sample.questions[: dialogue.questions]
    answers = [", ".join(each.references) + "." + template.between for each in taken] if dialogue.conversation else []
    return FittedSample(
        (*template.before, *template.encode(sample.context)),
        tuple(tuple(template.encode(each.text + template.after + each.answer_prefix)) for each in taken),
        tuple(each.references for each in taken),
        tuple(tuple(template.encode(" " + each)) for each in answers),
    )
