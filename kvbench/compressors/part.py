"""A part of a compressor: one frozen dataclass, one published idea, one file.

Its fields are the keys of the spec string; :meth:`Part.apply` fills in the roles it plays. To add a method, subclass
it in a module of your own and name the class under the entry-point group ``kvbench.compressors``.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from kvbench.cache.spans import Spans
from kvbench.compressors.draft import Draft
from kvbench.errors import KvbenchError, unknown

Role = Literal["baseline", "selector", "transform", "rotation", "quantizer"]
"""In the order in which they are applied. A part with two of them also fills the roles between."""


@dataclass(frozen=True)
class Part(ABC):
    """Base of all parts. Class attributes describe the method to people and tables."""

    name: ClassVar[str]
    family: ClassVar[str]
    """low rank, quantization, eviction, transform coding, baseline."""
    roles: ClassVar[tuple[Role, ...]]
    paper: ClassVar[str] = ""
    published: ClassVar[tuple[str, ...]] = ()
    """Specs, the knob left open, of the settings that its paper recommends: what an equal-bytes comparison tries."""
    needs_calibration: ClassVar[bool] = False

    @abstractmethod
    def apply(self, draft: Draft) -> None:
        """Fill in this part's roles for every layer of ``draft``."""

    @property
    def spans(self) -> Spans:
        """What the exact spans are unless the spec says otherwise."""
        return Spans()

    def __str__(self) -> str:
        given = [
            f"{item.name}={_format(getattr(self, item.name))}"
            for item in fields(self)
            if item.default is MISSING or getattr(self, item.name) != item.default
        ]
        return self.name + (":" + ",".join(given) if given else "")

    @classmethod
    def parse(cls, settings: dict[str, str]) -> Part:
        """Build the part from the spec's ``key=value`` pairs.

        Raises:
            KvbenchError: unknown key, missing key, or a value of the wrong kind or out of range.
        """
        items = {item.name: item for item in fields(cls)}
        hints = get_type_hints(cls)
        for key in settings:
            if key not in items:
                raise unknown(f"key of compressor {cls.name!r}:", key, [*items, *(item.name for item in fields(Spans))])
        missing = [key for key, item in items.items() if item.default is MISSING and key not in settings]
        if missing:
            raise KvbenchError(f"compressor {cls.name!r} needs {', '.join(missing)}, as in {cls.name}:{missing[0]}=…")
        return cls(**{key: convert(f"{cls.name}:{key}", text, hints[key]) for key, text in settings.items()})

    @classmethod
    def settings(cls) -> list[tuple[str, str, str]]:
        """(key, kind, default) of every field, for help texts."""
        hints = get_type_hints(cls)
        return [(item.name, _kind(hints[item.name]), _default(item)) for item in fields(cls)]

    def require(self, condition: bool, what: str) -> None:
        """Refuse a setting with one line that names the part."""
        if not condition:
            raise KvbenchError(f"{self.name}: {what}")


MOST = 2**31 - 1
"""Of whole numbers in specs."""
_NUMBERS = {int: re.compile(r"[+-]?[0-9]+"), float: re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")}


def convert(name: str, text: str, hint: Any) -> Any:
    """A spec value as the annotated type: int, float, str, bool, a Literal, or one of these or None."""
    options = [option for option in get_args(hint) if option is not type(None)]
    if get_origin(hint) is Literal:
        if text not in options:
            raise unknown(f"value for {name}:", text, options)
        return text
    kind = options[0] if options else hint
    if get_origin(kind) is Literal:
        return convert(name, text, kind)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in _NUMBERS and not _NUMBERS[kind].fullmatch(text):  # int("1_0") is 10
            raise ValueError(text)
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError(text)
        if kind is int and abs(value) > MOST:
            raise KvbenchError(f"{name}={text} is beyond {MOST:,}")
        return value
    except (ValueError, KeyError):
        raise KvbenchError(f"{name}={text!r} is not {_article(kind)}") from None


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, f"a {kind.__name__}")


def _kind(hint: Any) -> str:
    options = [option for option in get_args(hint) if option is not type(None)]
    if get_origin(hint) is Literal:
        return "|".join(map(str, options))
    return _kind(options[0]) if options else hint.__name__


def _default(item: Field[Any]) -> str:
    return "required" if item.default is MISSING else _format(item.default)


def _format(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):  # short where that loses nothing: a canonical spec must give the same compressor
        short = f"{value:g}"
        return (short if float(short) == value else repr(value)).replace("e+", "e")  # a plus would start a part
    return str(value)
