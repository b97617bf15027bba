"""Random words, names, numbers and identifiers for tasks."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from random import Random
from uuid import UUID

from kvbench.errors import KvbenchError


@lru_cache(maxsize=8)
def word_list(kind: str) -> tuple[str, ...]:
    """English ``noun``s, ``adjective``s or ``verb``s of the package wonderwords, in order.

    Raises:
        KvbenchError: it is not installed.
    """
    try:
        assets = resources.files("wonderwords") / "assets"
    except ModuleNotFoundError as error:
        raise KvbenchError("tasks take their words from the package wonderwords; pip install wonderwords") from error
    lines = (assets / f"{kind}list.txt").read_text("utf-8").split("\n")
    return tuple(sorted({line.strip() for line in lines} - {""}))


@lru_cache(maxsize=1)
def all_words() -> tuple[str, ...]:
    """Nouns, adjectives and verbs of a single word."""
    return tuple(
        sorted({word for kind in ("noun", "adjective", "verb") for word in word_list(kind) if " " not in word})
    )


def distinct(random: Random, kind: str, count: int) -> list[str]:
    """``count`` different keys or values ("words", "numbers" or "uuids"), in random order."""
    made: dict[str, None] = {}
    while len(made) < count:
        made[_one(random, kind)] = None
    return list(made)


def _one(random: Random, kind: str) -> str:
    if kind == "words":
        return f"{random.choice(word_list('adjective'))}-{random.choice(word_list('noun'))}"
    if kind == "numbers":
        return str(random.randrange(10**6, 10**7))
    return str(UUID(int=random.getrandbits(128), version=4))


_STARTS = ("Bel", "Cor", "Dal", "Fen", "Gar", "Hol", "Kel", "Lor", "Mar", "Nor", "Pel", "Ros", "Sel", "Tam", "Vor")
_MIDDLES = ("a", "ba", "da", "e", "li", "ma", "na", "o", "ra", "ri", "ta", "vi")
_LAST = ("bert", "by", "dale", "den", "ford", "lin", "more", "ner", "rick", "son", "ston", "ton", "vale", "wick")


def proper_names(random: Random, count: int) -> list[str]:
    """``count`` different invented names, as of people and places."""
    made: dict[str, None] = {}
    while len(made) < count:
        made[random.choice(_STARTS) + random.choice(_MIDDLES) + random.choice(_LAST)] = None
    return list(made)
