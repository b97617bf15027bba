"""Texts with slips that a reader hardly notices, to see how far a model's answer moves for them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random


def _swapped(word: str, random: Random) -> str:
    """Two neighbouring letters change places."""
    if len(word) < 4:
        return word
    place = random.randrange(1, len(word) - 2)
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _other_case(word: str, random: Random) -> str:
    return word.lower() if word[:1].isupper() else word.capitalize()


def _other_punctuation(word: str, random: Random) -> str:
    """A mark at the end goes, or a comma comes."""
    return word[:-1] if word[-1:] in ",.;:!?" and len(word) > 1 else f"{word},"


SLIPS: tuple[Callable[[str, Random], str], ...] = (_swapped, _other_case, _other_punctuation)
"""Each is as likely as the others."""


def perturbed(text: str, share: float, seed: int) -> str:
    """``text``, its spaces as they are, with a slip in about a ``share`` (0…1) of its words, and at least in one."""
    random, pieces = Random(seed), text.split(" ")
    words = [place for place, piece in enumerate(pieces) if piece.strip()]
    for place in random.sample(words, min(len(words), max(1, round(share * len(words))))):
        pieces[place] = random.choice(SLIPS)(pieces[place], random)
    return " ".join(pieces)
