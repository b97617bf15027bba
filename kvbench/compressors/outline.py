"""What a part says of itself: enough to read, check and explain a spec without the code that compresses."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin

from kvbench.cache.spans import Spans
from kvbench.compressors.rules import Rule, as_text, check
from kvbench.compressors.rules import from_json as rule_from_json
from kvbench.compressors.rules import to_json as rule_to_json
from kvbench.errors import KvbenchError, unknown

MOST = 2**31 - 1
"""Of whole numbers in specs."""
_NUMBERS = {int: re.compile(r"[+-]?[0-9]+"), float: re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")}
_PLAIN = {kind.__name__: kind for kind in (int, float, bool, str)}


@dataclass(frozen=True)
class Setting:
    """One key of a part. ``hint`` is the type of its values, but for None: a Literal, or what makes one of a text."""

    key: str
    hint: Any
    required: bool = False
    default: Any = None

    @property
    def kind(self) -> str:
        """The type in words: int, float, bool, str, or the texts to choose from."""
        return "|".join(get_args(self.hint)) if get_origin(self.hint) is Literal else self.hint.__name__

    @property
    def in_words(self) -> tuple[str, str, str]:
        """Key, kind and default, for help texts."""
        return self.key, self.kind, "required" if self.required else as_text(self.default)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"key": self.key, "kind": self.kind, **({} if self.required else {"default": self.default})}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Setting:
        """The inverse of :meth:`to_json`."""
        kind = stored["kind"]
        hint: Any = _PLAIN.get(kind) or Literal.__getitem__(tuple(kind.split("|")))
        return cls(stored["key"], hint, "default" not in stored, stored.get("default"))


@dataclass(frozen=True)
class Outline:
    """A part without its code; ``about`` is its docstring."""

    name: str
    family: str
    roles: tuple[str, ...]
    paper: str
    needs_calibration: bool
    about: str
    settings: tuple[Setting, ...]
    rules: tuple[Rule, ...]

    def given(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """The values of ``texts``, which need not be all that the part needs.

        Raises:
            KvbenchError: an unknown key, or a value of the wrong kind.
        """
        known = self._known(texts)
        return {key: convert(f"{self.name}:{key}", text, known[key].hint) for key, text in texts.items()}

    def values(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """The values of all settings, given or by default; whether they keep the rules is left to :meth:`check`.

        Raises:
            KvbenchError: unknown key, missing key, or a value of the wrong kind.
        """
        known = self._known(texts)
        missing = [key for key, setting in known.items() if setting.required and key not in texts]
        if missing:
            raise KvbenchError(f"compressor {self.name!r} needs {', '.join(missing)}, as in {self.name}:{missing[0]}=…")
        given = self.given(texts)
        return {key: given.get(key, setting.default) for key, setting in known.items()}

    def check(self, values: Mapping[str, Any]) -> None:
        """Raises KvbenchError where ``values`` of all settings break a rule."""
        check(self.name, self.rules, values)

    def text(self, values: Mapping[str, Any]) -> str:
        """The canonical spec of a part with these values: what differs from the defaults, in the order of settings."""
        given = [
            f"{setting.key}={as_text(values[setting.key])}"
            for setting in self.settings
            if setting.required or values[setting.key] != setting.default
        ]
        return self.name + (":" + ",".join(given) if given else "")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        lists = {
            "settings": [setting.to_json() for setting in self.settings],
            "rules": [rule_to_json(rule) for rule in self.rules],
        }
        return vars(self) | {"roles": [*self.roles]} | lists

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Outline:
        """The inverse of :meth:`to_json`; what else is stored is not looked at."""
        plain = {item.name: stored[item.name] for item in fields(cls)}
        lists = {
            "roles": tuple(stored["roles"]),
            "settings": tuple(Setting.from_json(setting) for setting in stored["settings"]),
            "rules": tuple(rule_from_json(rule) for rule in stored["rules"]),
        }
        return cls(**plain | lists)

    def _known(self, texts: Mapping[str, str]) -> dict[str, Setting]:
        """All settings by their keys, after a look at those of ``texts``."""
        known = {setting.key: setting for setting in self.settings}
        for key in texts:
            if key not in known:
                raise unknown(
                    f"key of compressor {self.name!r}:", key, [*known, *(item.name for item in fields(Spans))]
                )
        return known


def convert(name: str, text: str, hint: Any) -> Any:
    """The text of a spec as a value of the type ``hint``: int, float, str, bool, a Literal, or what its call makes.

    Raises:
        KvbenchError: it is none, in words that name the setting ``name``.
    """
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise unknown(f"value for {name}:", text, get_args(hint))
        return text
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        if hint in _NUMBERS and not _NUMBERS[hint].fullmatch(text):  # int("1_0") is 10
            raise ValueError(text)
        value = hint(text)
        if hint is float and not math.isfinite(value):
            raise ValueError(text)
        if hint is int and abs(value) > MOST:
            raise KvbenchError(f"{name}={text} is beyond {MOST:,}")
        return value
    except (ValueError, KeyError):
        raise KvbenchError(f"{name}={text!r} is not {_article(hint)}") from None


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, f"a {kind.__name__}")
