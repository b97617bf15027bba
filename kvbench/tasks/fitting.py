"""Samples in tokens: as long as wanted and never longer, all of a task alike, so that they make a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from transformers import PreTrainedTokenizerBase

from kvbench.errors import KvbenchError
from kvbench.tasks.sample import Sample, Task

_MARK = "\u2402"
_MOST = 1 << 22


@dataclass(frozen=True)
class PromptTemplate:
    """What stands around a user's words: tokens before them, a text behind. ``encode`` makes tokens of text."""

    before: tuple[int, ...]
    after: str
    encode: Callable[[str], list[int]]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, chat: bool) -> PromptTemplate:
        """A turn of the model's chat template; without ``chat`` the tokens alone that any text begins with.

        Raises:
            KvbenchError: ``chat`` without a chat template.
        """

        def encode(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False).input_ids)

        if not chat:
            return cls(tuple(tokenizer("").input_ids), "", encode)
        if not tokenizer.chat_template:
            raise KvbenchError(f"{tokenizer.name_or_path or 'this tokenizer'} has no chat template; set chat to false")
        turn = [{"role": "user", "content": _MARK}]
        rendered = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        before, mark, after = rendered.partition(_MARK)
        if not mark:
            raise KvbenchError("the chat template does not keep the user's words as they are; set chat to false")
        return cls(tuple(encode(before)), after, encode)


@dataclass(frozen=True)
class FittedSample:
    """``context`` (tokens) is compressed before any of ``questions`` (tokens each) follows it."""

    context: tuple[int, ...]
    questions: tuple[tuple[int, ...], ...]
    references: tuple[tuple[str, ...], ...]


def fitted_samples(
    task: Task, template: PromptTemplate, length: int, count: int, seed: int, questions: int = 1
) -> list[FittedSample]:
    """``count`` samples whose context, longest question and answer take exactly ``length`` tokens together.

    Each is as large as fits; what its unit leaves over are newlines in front of the context and of shorter questions.
    At most ``questions`` are taken of each.

    Raises:
        KvbenchError: the task does not fit, or its context does not grow to the length.
    """
    samples = [_largest(task, template, length, f"{seed} {index}", questions) for index in range(count)]
    longest = max(len(question) for sample in samples for question in sample.questions)
    room = length - task.new_tokens - longest
    newline = template.encode("\n")[-1]
    fitted = []
    for index, sample in enumerate(samples):
        if len(sample.context) > room:  # another sample's question is longer than its own
            shorter = length - longest + max(map(len, sample.questions))
            sample = _largest(task, template, shorter, f"{seed} {index}", questions)
        filler = (newline,) * (room - len(sample.context))
        head = len(template.before)
        padded = tuple((newline,) * (longest - len(question)) + question for question in sample.questions)
        context = sample.context[:head] + filler + sample.context[head:]
        fitted.append(FittedSample(context, padded, sample.references))
    return fitted


def _largest(task: Task, template: PromptTemplate, length: int, seed: str, questions: int) -> FittedSample:
    """The largest sample of a seed within ``length`` tokens, answer included."""

    def made(size: int) -> FittedSample:
        return _encoded(task.sample(Random(seed), size), template, questions)

    def fits(sample: FittedSample) -> bool:
        return len(sample.context) + max(map(len, sample.questions)) + task.new_tokens <= length

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


def _encoded(sample: Sample, template: PromptTemplate, questions: int) -> FittedSample:
    taken = sample.questions[:questions]
    return FittedSample(
        (*template.before, *template.encode(sample.context)),
        tuple(tuple(template.encode(each.text + template.after + each.answer_prefix)) for each in taken),
        tuple(each.references for each in taken),
    )
