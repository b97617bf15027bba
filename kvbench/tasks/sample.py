"""What a task hands to a model: a context, and questions about it that come after the context is compressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol


@dataclass(frozen=True)
class Question:
    """``text`` follows the context; the model's answer begins with ``answer_prefix``, which is given to it.

    ``references`` are what the answer should contain: :data:`kvbench.tasks.scoring.METRICS` says how many of them.
    """

    text: str
    answer_prefix: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """``context`` and one or more questions, of which the first is the task's."""

    context: str
    questions: tuple[Question, ...]


class Task(Protocol):
    """What makes samples of a wanted size; ``metric`` is one of :data:`kvbench.tasks.scoring.METRICS`."""

    @property
    def metric(self) -> str:
        """How answers are scored."""

    @property
    def new_tokens(self) -> int:
        """The most tokens of an answer."""

    def sample(self, random: Random, size: int) -> Sample:
        """A sample whose context grows with ``size``; the same for the same state of ``random``."""


def in_words(items: Sequence[str]) -> str:
    """``a``, ``a, and b``, ``a, b, and c``, as RULER's questions list keys."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])}, and {items[-1]}"
