"""What needles and variables are hidden in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

_NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
DEPTHS = tuple(round(100 * index / 39) for index in range(40))
"""Per cent of an essay before a needle: RULER's forty depths."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def noise_lines(pieces: int) -> list[str]:
    """RULER's noise: the same five short sentences in every line; ``pieces`` of them, the last line cut."""
    lines = [_NOISE] * (pieces // len(_NOISE)) + [_NOISE[: pieces % len(_NOISE)]]
    return [" ".join(line) for line in lines if line]


def hidden_in_lines(random: Random, lines: Sequence[str], hidden: Sequence[str], ordered: bool = False) -> str:
    """``hidden`` lines at random places among ``lines``; ``ordered``: one after the other as they come."""
    places = [random.randint(0, len(lines)) for _ in hidden]
    if ordered:
        places.sort()
    mixed = list(lines)
    _insert(mixed, places, hidden)
    return "\n".join(mixed)


def hidden_in_essay(random: Random, words: Sequence[str], size: int, hidden: Sequence[str], depth: float | None) -> str:
    """``hidden`` sentences between those of the first ``size`` words, which repeat where they are too few.

    At random :data:`DEPTHS`; with ``depth``, 0…1, the first of them there.
    """
    text = " ".join(words[index % len(words)] for index in range(size))
    sentences = _SENTENCE.split(text)
    depths = random.sample(DEPTHS, len(hidden))
    if depth is not None:
        depths[0] = round(100 * depth)
    else:
        depths.sort()
    places = [round(len(sentences) * each / 100) for each in depths]
    _insert(sentences, places, hidden)
    return " ".join(sentences)


def _insert(texts: list[str], places: Sequence[int], hidden: Sequence[str]) -> None:
    """Those of the same place stay in order."""
    by_place = sorted(zip(places, hidden, strict=True), key=lambda pair: pair[0])
    for before, (place, text) in enumerate(by_place):
        texts.insert(place + before, text)
