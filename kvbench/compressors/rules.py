"""What values a part's settings may have: stated once in its class, and checked without any code that computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from kvbench.errors import KvbenchError

Values = Mapping[str, Any]
"""Of all settings of a part, by their keys."""


class Rule(Protocol):
    """One thing that must hold for the settings of a part."""

    def broken(self, name: str, values: Values) -> str | None:
        """What is wrong with ``values`` of the part ``name``, in words; None where nothing is."""


@dataclass(frozen=True)
class Bounds:
    """``key`` is at least ``least``, above it if ``above``, and at most ``most``. None stands for a setting not given.

    ``unit`` ends the sentence: what is counted, or what the number is a share of.
    """

    key: str
    least: float
    most: float | None = None
    above: bool = False
    unit: str = ""

    def broken(self, name: str, values: Values) -> str | None:
        """The interval, where the value lies outside."""
        value = values[self.key]
        if value is None:
            return None
        high_enough = value > self.least if self.above else value >= self.least
        if high_enough and (self.most is None or value <= self.most):
            return None
        return f"{self.key}={as_text(value)} must be {self._interval}{self.unit}"

    @property
    def _interval(self) -> str:
        least = as_text(self.least)
        if self.most is None:
            return f"above {least}" if self.above else f"at least {least}"
        return f"in {'(' if self.above else '['}{least}, {as_text(self.most)}]"


@dataclass(frozen=True)
class OneOf:
    """``key`` is one of ``choices``, or not given."""

    key: str
    choices: tuple[int, ...]

    def broken(self, name: str, values: Values) -> str | None:
        """The choices, where the value is another."""
        value = values[self.key]
        if value is None or value in self.choices:
            return None
        return f"{self.key}={value} is not one of {', '.join(map(str, self.choices))}"


@dataclass(frozen=True)
class Multiple:
    """``key`` is a multiple of ``of``, or ``odd``."""

    key: str
    of: int = 2
    odd: bool = False

    def broken(self, name: str, values: Values) -> str | None:
        """What it must be, where it is not."""
        value = values[self.key]
        if value % self.of == int(self.odd):
            return None
        wanted = f"a multiple of {self.of}" if self.of != 2 else "odd" if self.odd else "even"
        return f"{self.key}={value} must be {wanted}"


@dataclass(frozen=True)
class ShareOrCount:
    """``key`` is a share of something, up to 1, or a whole number of ``unit`` above 1."""

    key: str
    unit: str

    def broken(self, name: str, values: Values) -> str | None:
        """Both kinds, where it is neither."""
        value = values[self.key]
        if 0 < value <= 1 or value == int(value) > 1:
            return None
        return f"{self.key}={as_text(value)} must be a fraction in (0, 1] or a whole number of {self.unit}"


@dataclass(frozen=True)
class Either:
    """One of two keys is given, not both; ``examples`` show how."""

    keys: tuple[str, str]
    examples: tuple[str, str]

    def broken(self, name: str, values: Values) -> str | None:
        """Both ways, where none or both are taken."""
        one, other = self.keys
        if (values[one] is None) != (values[other] is None):
            return None
        return f"give either {one} or {other}, as in {' or '.join(f'{name}:{example}' for example in self.examples)}"


@dataclass(frozen=True)
class Needs:
    """Unless ``key`` has one of the values ``free``, ``other`` must have the value ``wanted``; ``told`` says why."""

    key: str
    free: tuple[Any, ...]
    other: str
    wanted: Any
    told: str

    def broken(self, name: str, values: Values) -> str | None:
        """The reason, where ``other`` is not as it must be."""
        if values[self.key] in self.free or values[self.other] == self.wanted:
            return None
        return self.told


def share(key: str, of: str = "a fraction") -> Bounds:
    """``key`` is in (0, 1]; ``of`` says of what."""
    return Bounds(key, 0, 1, above=True, unit=f", {of}")


def at_least(key: str, least: int, unit: str = "") -> Bounds:
    """``key`` counts ``least`` or more of ``unit``."""
    return Bounds(key, least, unit=unit and f" {unit}")


def check(name: str, rules: tuple[Rule, ...], values: Values) -> None:
    """Raises KvbenchError, in one line that names the part: the first of ``rules`` that does not hold."""
    for rule in rules:
        wrong = rule.broken(name, values)
        if wrong is not None:
            raise KvbenchError(f"{name}: {wrong}")


def as_text(value: object) -> str:
    """A value as specs write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):  # short where that loses nothing: a canonical spec must give the same compressor
        short = f"{value:g}"
        return (short if float(short) == value else repr(value)).replace("e+", "e")  # a plus would start a part
    return str(value)


_KINDS: dict[str, Any] = {cls.__name__: cls for cls in (Bounds, OneOf, Multiple, ShareOrCount, Either, Needs)}


def to_json(rule: Any) -> dict[str, Any]:
    """One of the rules above as plain JSON values."""
    return {"rule": type(rule).__name__, **asdict(rule)}


def from_json(stored: Mapping[str, Any]) -> Rule:
    """The inverse of :func:`to_json`."""
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items() if key != "rule"}
    rule: Rule = _KINDS[stored["rule"]](**given)
    return rule
