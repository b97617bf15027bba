"""What a part of a workload is: settings that know what they read and how they are measured, and the result of that.

Suites, records and reports are read without torch, and settings and results with them: what measures is imported in
the methods that need it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from pydantic import Field

from kvbench.storage.frozen import Frozen

if TYPE_CHECKING:
    from kvbench.compressors.compressor import Compressor
    from kvbench.measure.arms import Arm
    from kvbench.measure.bench import CalibrationSource, ModelBench
    from kvbench.texts.splits import Split
    from kvbench.texts.windows import Windows

TIMEOUT_S = 1800.0
"""Seconds that a measurement in a process of its own may take unless told otherwise."""


@dataclass(frozen=True)
class Inputs:
    """What all parts of a workload are measured on: prompts and documents of one split of one text."""

    text: str
    split: Split
    calibration: CalibrationSource
    seed: int = 0
    timeout_s: float = TIMEOUT_S
    memory_limited: bool = False
    """Whether only what a user of the compressor needs may take memory: no prompt that waits for other arms."""


class PartSettings(Frozen):
    """What is to be measured of a compressor: one part of a workload, a table of a suite file."""

    @property
    @abstractmethod
    def in_words(self) -> str:
        """The settings in one line, for the heads of tables."""

    @abstractmethod
    def windows(self, bench: ModelBench, compressor: Compressor, inputs: Inputs) -> dict[str, Windows]:
        """What is read of the texts, by the names under which a trial pins its hashes; nothing is measured.

        Raises:
            KvbenchError: what no trial could run with, such as more tokens than the model's context.
        """

    @abstractmethod
    def measure(self, bench: ModelBench, arm: Arm, inputs: Inputs) -> Frozen:
        """The result for ``arm``. What compressors share is computed once (:meth:`ModelBench.shared`)."""


class HasSettings(Frozen):
    """Base of what holds every part's settings under its name."""


class HasResults(Frozen):
    """Base of what holds every part's result under its name."""


S = TypeVar("S", bound=PartSettings)
R = TypeVar("R", bound=Frozen)


@dataclass(frozen=True)
class WorkloadPart(Generic[S, R]):
    """One entry of the registry.

    A part that is not measured is None, and not written. ``written_as_null``: written all the same, as were the parts
    of the first records of schema 2, whose ids and checksums cover it.
    """

    settings: type[S]
    result: type[R]
    written_as_null: bool = False

    if TYPE_CHECKING:  # a type checker reads the fields that fields_of makes from the registry's attributes

        @overload
        def __get__(self, instance: HasSettings, owner: object = None) -> S | None: ...

        @overload
        def __get__(self, instance: HasResults, owner: object = None) -> R | None: ...

        def __get__(self, instance: object, owner: object = None) -> object: ...


def fields_of(parts: Mapping[str, WorkloadPart[Any, Any]], kind: Literal["settings", "result"]) -> dict[str, Any]:
    """Fields for :func:`pydantic.create_model`: the settings or the result of each part, or None."""
    return {
        name: (getattr(part, kind) | None, Field(None, exclude_if=None if part.written_as_null else _is_none))
        for name, part in parts.items()
    }


def _is_none(value: object) -> bool:
    return value is None
