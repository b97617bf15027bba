"""Needles in a haystack (RULER's ``niah``): sentences that give keys values, hidden in noise, essays or their like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from kvbench.tasks.ruler.haystack import hidden_in_essay, hidden_in_lines, noise_lines
from kvbench.tasks.ruler.words import distinct
from kvbench.tasks.sample import Question, Sample, in_words

_PIECES = 8
"""Pieces of noise that fill up what a haystack of needles leaves: a needle is too coarse a unit for short contexts."""


@dataclass(frozen=True)
class Needles:
    """``keys`` of ``key_kind`` with ``values`` of ``value_kind`` each, of which ``queried`` keys are in one question.

    ``essay`` (words) is the haystack of that name; one of ``needle`` has needles of other keys. ``depth``, 0…1, is
    where in an essay the first key in question stands; None: anywhere.
    """

    haystack: Literal["noise", "essay", "needle"]
    essay: Sequence[str] = ()
    key_kind: str = "words"
    value_kind: str = "numbers"
    keys: int = 1
    values: int = 1
    queried: int = 1
    depth: float | None = None
    metric: str = "all"
    new_tokens: int = 128

    def sample(self, random: Random, size: int) -> Sample:
        """A context of about ``size`` words (essay), short sentences (noise) or eighths of needles."""
        others = size // _PIECES if self.haystack == "needle" else 0
        names = distinct(random, self.key_kind, self.keys + others)
        values = distinct(random, self.value_kind, self.keys * self.values + others)
        of_keys = zip(*[iter(values)] * self.values, strict=False)
        answers = dict(zip(names[: self.keys], of_keys, strict=False))
        needles = [self._needle(name, value) for name, of_name in answers.items() for value in of_name]
        queried = random.sample(names[: self.keys], self.queried)
        if self.depth is None:
            random.shuffle(needles)
        if self.haystack == "essay":
            context = hidden_in_essay(random, self.essay, size, needles, self.depth)
        else:
            lines = noise_lines(size if self.haystack == "noise" else size % _PIECES)
            distractors = zip(names[self.keys :], values[self.keys * self.values :], strict=False)
            lines += [self._needle(name, value) for name, value in distractors]
            context = hidden_in_lines(random, lines, needles)
        other_questions = [[name] for name in names[: self.keys] if name not in queried] if self.queried == 1 else []
        questions = [self._question(queried_names, answers) for queried_names in (queried, *other_questions)]
        return Sample(self._instruction() + context, tuple(questions))

    @property
    def _single(self) -> bool:
        return self.queried * self.values == 1

    @property
    def _kind(self) -> str:
        return self.value_kind[:-1] if self._single else self.value_kind

    def _needle(self, name: str, value: str) -> str:
        return f"One of the special magic {self.value_kind} for {name} is: {value}."

    def _instruction(self) -> str:
        kind, some, are = self._kind, *(("A", "is") if self._single else ("Some", "are"))
        quiz = f"I will quiz you about the {kind} afterwards."
        return f"{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. {quiz}\n"

    def _question(self, names: Sequence[str], answers: dict[str, tuple[str, ...]]) -> Question:
        query, kind = in_words(names), self._kind
        are, is_ = ("is", "is") if self._single else ("are all", "are")
        mentioned = "mentioned in the provided text"
        return Question(
            f"\nWhat {are} the special magic {kind} for {query} {mentioned}?",
            f" The special magic {kind} for {query} {mentioned} {is_}",
            tuple(value for name in names for value in answers[name]),
        )
