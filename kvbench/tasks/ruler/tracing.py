"""Variable tracking (RULER's ``vt``): which variables hold a value, after a chain of assignments hidden in noise."""

from __future__ import annotations

import string
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from kvbench.tasks.ruler.haystack import hidden_in_lines, noise_lines
from kvbench.tasks.sample import Question, Sample

_INSTRUCTION = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
_EXAMPLE_PIECES = 25
"""Noise of the solved example that comes first."""


@dataclass(frozen=True)
class VariableTracking:
    """One chain of ``hops`` assignments after the first; all its variables hold the value in question."""

    hops: int = 4
    metric: str = "all"
    new_tokens: int = 30

    def sample(self, random: Random, size: int) -> Sample:
        """A solved example, and a context of ``size`` short sentences of noise."""
        example = self._chain(random, _EXAMPLE_PIECES)
        (question,) = example.questions
        solved = f"{example.context}{question.text}{question.answer_prefix}{' '.join(question.references)}\n\n"
        whole = self._chain(random, size)
        return Sample(solved + whole.context, whole.questions)

    def _chain(self, random: Random, pieces: int) -> Sample:
        names: dict[str, None] = {}
        while len(names) <= self.hops:
            names["".join(random.choices(string.ascii_uppercase, k=5))] = None
        variables, value = list(names), str(random.randint(10000, 99999))
        lines = [f"VAR {variables[0]} = {value}"]
        lines += [f"VAR {after} = VAR {before} " for before, after in pairwise(variables)]
        context = hidden_in_lines(random, noise_lines(pieces), lines, ordered=True)
        count = len(variables)
        question = Question(
            f"\nQuestion: Find all variables that are assigned the value {value} in the text above.",
            " Answer: According to the chain(s) of variable assignment in the text above, "
            f"{count} variables are assigned the value {value}, they are: ",
            tuple(variables),
        )
        return Sample(_INSTRUCTION + context, (question,))
