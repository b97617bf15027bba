"""Question answering over documents (RULER's ``qa``): one or two that answer, among others that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from kvbench.tasks.ruler.words import proper_names
from kvbench.tasks.sample import Question, Sample

_INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)


@dataclass(frozen=True)
class Answerable:
    """A question, spellings of its answer, and the documents that it follows from."""

    question: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]


class Corpus(Protocol):
    """Where questions and documents come from."""

    def draw(self, random: Random, distractors: int) -> tuple[Answerable, Sequence[str]]:
        """A question, and ``distractors`` documents that do not answer it."""


@dataclass(frozen=True)
class QuestionAnswering:
    """One question over a ``corpus``; documents are numbered and in random order."""

    corpus: Corpus
    metric: str = "any"
    new_tokens: int = 32

    def sample(self, random: Random, size: int) -> Sample:
        """A context with ``size`` sentences of other documents, the last of which is cut."""
        answerable, others = self.corpus.draw(random, size)
        documents, left = list(answerable.documents), size
        for document in others:
            sentences = document.split(". ")
            if left <= 0:
                break
            kept = ". ".join(sentences[:left])
            documents.append(kept if kept.endswith(".") else kept + ".")
            left -= len(sentences)
        random.shuffle(documents)
        context = "\n\n".join(f"Document {place}:\n{document}" for place, document in enumerate(documents, 1))
        before = f"{_INSTRUCTION}\n\nThe following are given documents.\n\n"
        question = Question(f"\n\n{_INSTRUCTION}\n\nQuestion: {answerable.question}", " Answer:", answerable.answers)
        return Sample(before + context, (question,))


_FACTS = (
    ("The mayor of {town} is {name}", "Who is the mayor of {town}?"),
    ("{town} was founded by {name}", "By whom was {town} founded?"),
    ("The river that runs through {town} is the {name}", "Which river runs through {town}?"),
    ("The town hall of {town} was built in {year}", "In which year was the town hall of {town} built?"),
)


@dataclass(frozen=True)
class InventedTowns:
    """Documents about towns that do not exist, so that no model knows the answers.

    ``hops`` 1: a fact about a town; 2: about the town where a person was born, which stands in a document of its own.
    """

    hops: int = 1

    def draw(self, random: Random, distractors: int) -> tuple[Answerable, Sequence[str]]:
        """Towns, and with two hops people; no two of them share a name."""
        count = distractors // len(_FACTS) + 2
        names = iter(proper_names(random, 5 * count + 2))
        towns = [self._town(random, [next(names) for _ in range(4)]) for _ in range(count)]
        (town, facts), others = towns[0], towns[1:]
        kind = random.randrange(len(_FACTS))
        question = _FACTS[kind][1].format(town=town)
        documents = [self._document(town, facts)]
        distracting = [self._document(*each) for each in others]
        if self.hops == 2:
            person = next(names)
            documents.append(f"{person} was born in {town}.")
            question = _FACTS[kind][1].format(town=f"the town where {person} was born")
            distracting = [
                document
                for (other, _), document in zip(others, distracting, strict=True)
                for document in (f"{next(names)} was born in {other}.", document)
            ]
        return Answerable(question, (facts[kind],), tuple(documents)), distracting

    @staticmethod
    def _town(random: Random, names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        """A town and the answer to each of the questions about it."""
        return names[0], (*names[1:], str(random.randint(1600, 1990)))

    @staticmethod
    def _document(town: str, facts: Sequence[str]) -> str:
        told = [
            sentence.format(town=town, name=fact, year=fact) for (sentence, _), fact in zip(_FACTS, facts, strict=True)
        ]
        return ". ".join(told) + "."
