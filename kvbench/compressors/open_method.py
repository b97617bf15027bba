"""A method with one setting left open: what equal bytes and a wanted divergence are solved for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

from kvbench.compressors.compressor import Compressor, assemble
from kvbench.compressors.part import Part
from kvbench.compressors.spec import Spec, WrittenPart, read
from kvbench.errors import KvbenchError

KNOBS = ("bits", "rank", "budget", "latent")
HIGHEST = {"bits": 8.0}
"""The largest value of a knob that is not a share of something."""


@dataclass(frozen=True)
class OpenMethod:
    """A spec whose first open setting among ``bits``, ``rank``, ``budget`` and ``latent`` is the ``knob``.

    ``choices`` are its whole numbers; without any it takes every number up to ``highest``. ``place`` is the index of
    its part. Nothing is open where ``knob`` is None.
    """

    spec: Spec
    knob: str | None = None
    choices: tuple[int, ...] = ()
    place: int = 0

    @classmethod
    def of(cls, method: str) -> OpenMethod:
        """``method`` as in ``kvtc:recent=0`` or ``pca+int:bits=4``. Raises KvbenchError for what is no spec."""
        spec = read(method)
        for place, part in enumerate(spec.parts):
            hints = get_type_hints(part.cls)
            for item in fields(part.cls):
                if item.name not in KNOBS or item.name in part.settings:
                    continue
                if item.default is not None or not _complete(part):
                    return cls(spec, item.name, _choices(part.cls, item.name) if hints[item.name] is int else (), place)
        return cls(spec)

    @property
    def highest(self) -> float:
        """The largest value of the knob."""
        return HIGHEST.get(self.knob or "", 1.0)

    def example(self) -> Compressor:
        """The compressor with its knob at the highest setting."""
        return self.at(self.choices[-1] if self.choices else self.highest)

    def at(self, value: float | None = None, spans: Mapping[str, Any] | None = None) -> Compressor:
        """The compressor with the knob at ``value``; ``spans`` hold where the method does not state its own.

        Raises:
            KvbenchError: the method refuses the value, or is not complete without one.
        """
        parts = list(self.spec.parts)
        if value is not None and self.knob is not None:
            part = parts[self.place]
            parts[self.place] = replace(part, settings=part.settings | {self.knob: f"{value:g}"})
        return assemble(replace(self.spec, parts=tuple(parts), spans={**(spans or {}), **self.spec.spans}))


def _complete(part: WrittenPart) -> bool:
    """Whether a part says enough without the settings it leaves out: ``pca:energy=0.9`` needs no rank."""
    try:
        return bool(part.cls.parse(part.settings))
    except KvbenchError:
        return False


def _choices(cls: type[Part], name: str) -> tuple[int, ...]:
    """The whole numbers up to 16 that the part accepts."""

    def accepted(value: int) -> bool:
        try:
            cls(**{name: value})
        except (KvbenchError, TypeError):
            return False
        return True

    return tuple(value for value in range(1, 17) if accepted(value))
