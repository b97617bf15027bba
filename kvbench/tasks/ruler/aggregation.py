"""Aggregation over a whole context: RULER's common words (``cwe``) and frequent coded words (``fwe``)."""

from __future__ import annotations

import string
from dataclasses import dataclass
from random import Random

from scipy.special import zeta

from kvbench.tasks.ruler.words import all_words
from kvbench.tasks.sample import Question, Sample

SHORT = 4096
"""Tokens below which common words are repeated less often."""


@dataclass(frozen=True)
class CommonWords:
    """Ten words that stand often in a numbered list of words that stand there a few times each."""

    length: int
    common: int = 10
    metric: str = "all"
    new_tokens: int = 120

    def sample(self, random: Random, size: int) -> Sample:
        """A solved example, and a list with ``size`` entries of rare words."""
        short = self.length < SHORT
        often, seldom = (6, 1) if short else (30, 3)
        example = self._list(random, 10, *((3, 1) if short else (10, 3)))
        (question,) = example.questions
        answer = " ".join(f"{place}. {word}" for place, word in enumerate(question.references, 1))
        solved = f"{example.context}{question.text}{question.answer_prefix} {answer}\n"
        whole = self._list(random, size, often, seldom)
        return Sample(solved + whole.context, whole.questions)

    def _list(self, random: Random, entries: int, often: int, seldom: int) -> Sample:
        words = random.sample(all_words(), self.common + -(-entries // seldom))
        rare = [word for word in words[self.common :] for _ in range(seldom)][:entries]
        listed = [word for word in words[: self.common] for _ in range(often)] + rare
        random.shuffle(listed)
        numbered = " ".join(f"{place}. {word}" for place, word in enumerate(listed, 1))
        question = Question(
            "\nQuestion: What are the 10 most common words in the above list?",
            " Answer: The top 10 words that appear most often in the list are:",
            tuple(words[: self.common]),
        )
        instruction = (
            "Below is a numbered list of words. In these words, some appear more often than others. "
            "Memorize the ones that appear most often.\n"
        )
        return Sample(instruction + numbered, (question,))


@dataclass(frozen=True)
class FrequentWords:
    """The three words of a coded text that follow ``...`` in a Zipf distribution of exponent ``alpha``."""

    length: int
    alpha: float = 2.0
    metric: str = "all"
    new_tokens: int = 50

    def sample(self, random: Random, size: int) -> Sample:
        """A coded text of about ``size`` words."""
        count = max(self.length // 50, 4)
        codes: dict[str, None] = {}
        while len(codes) < count:
            codes["".join(random.choices(string.ascii_lowercase, k=6))] = None
        vocabulary = ["...", *list(codes)[1:]]
        repeats = [int(size * rank**-self.alpha / zeta(self.alpha)) for rank in range(1, count + 1)]
        text = [word for word, times in zip(vocabulary, repeats, strict=True) for _ in range(times)]
        random.shuffle(text)
        question = Question(
            "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most "
            "frequently appeared words in the above coded text?",
            " Answer: According to the coded text above, the three most frequently appeared words are:",
            tuple(vocabulary[1:4]),
        )
        instruction = (
            "Read the following coded text and track the frequency of each coded word. "
            "Find the three most frequently appeared coded words. "
        )
        return Sample(instruction + " ".join(text), (question,))
