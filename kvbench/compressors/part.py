"""A part of a compressor: one frozen dataclass, one published idea, one file.

Its fields are the keys of the spec string; :meth:`Part.apply` fills in the roles it plays. To add a method, subclass
it in a module of your own and name the class under the entry-point group ``kvbench.compressors``.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from kvbench.cache.spans import Spans
from kvbench.compressors.outline import Outline, Setting
from kvbench.compressors.rules import Rule, check
from kvbench.errors import KvbenchError

if TYPE_CHECKING:
    from kvbench.compressors.draft import Draft

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
    rules: ClassVar[tuple[Rule, ...]] = ()
    """What must hold for its settings; a subclass names those of its base again."""

    def __post_init__(self) -> None:
        check(self.name, self.rules, vars(self))

    @abstractmethod
    def apply(self, draft: Draft) -> None:
        """Fill in this part's roles for every layer of ``draft``."""

    @property
    def spans(self) -> Spans:
        """What the exact spans are unless the spec says otherwise."""
        return Spans()

    def __str__(self) -> str:
        return self.outline().text(vars(self))

    @classmethod
    def parse(cls, settings: dict[str, str]) -> Part:
        """Build the part from the spec's ``key=value`` pairs.

        Raises:
            KvbenchError: unknown key, missing key, or a value of the wrong kind or out of range.
        """
        return cls(**cls.outline().values(settings))

    @classmethod
    def outline(cls) -> Outline:
        """What the class says of itself, without its code."""
        return _outline(cls)

    @classmethod
    def settings(cls) -> list[tuple[str, str, str]]:
        """(key, kind, default) of every field, for help texts."""
        return [setting.in_words for setting in cls.outline().settings]

    def require(self, condition: bool, what: str) -> None:
        """Refuse a setting with one line that names the part."""
        if not condition:
            raise KvbenchError(f"{self.name}: {what}")


@cache
def _outline(cls: type[Part]) -> Outline:
    hints = get_type_hints(cls)
    settings = []
    for item in fields(cls):
        if item.init:
            required = item.default is MISSING
            settings.append(
                Setting(item.name, _without_none(hints[item.name]), required, None if required else item.default)
            )
    about = inspect.cleandoc(cls.__doc__ or "")
    described = cls.name, cls.family, cls.roles, cls.paper, cls.needs_calibration, about
    return Outline(*described, tuple(settings), cls.rules)


def _without_none(hint: Any) -> Any:
    """The type of a value that is given: int of int | None."""
    options = [option for option in get_args(hint) if option is not type(None)]
    return hint if get_origin(hint) is Literal or not options else options[0]
