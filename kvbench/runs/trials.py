"""What is measured: a workload, and the trial that binds it to a model, a compressor and a machine setting.

A trial's id is the hash of everything that can change its numbers; a trial that ran once under an id need not run
again. Its key is the short name under which results of different days are compared.
"""

from __future__ import annotations

import operator
from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from kvbench.measure.parts import PARTS, PartSettings, PartsOfWorkload
from kvbench.runs.canonical import content, digest
from kvbench.storage.frozen import Frozen
from kvbench.storage.units import ByteCount

SCHEMA = 2
"""Version of every model in :mod:`kvbench.runs.records` and of the store; a change needs a word in ``migrations``."""


class Workload(PartsOfWorkload):
    """A named set of measurements; a part that is None is not measured."""

    name: str

    @model_validator(mode="after")
    def _measures_something(self) -> Workload:
        if not self.name or not self.name.isprintable() or "|" in self.name:
            raise ValueError(f"workload name {self.name!r} must be one line of text without '|'")
        if not self.parts:
            raise ValueError(f"workload {self.name!r} measures nothing: give it {', '.join(PARTS)}")
        return self

    @property
    def parts(self) -> dict[str, PartSettings]:
        """What is measured, by names of :data:`kvbench.measure.parts.PARTS` and in their order."""
        return {name: settings for name in PARTS if (settings := getattr(self, name)) is not None}


class Trial(Frozen):
    """One measurement to make, fully resolved: nothing that changes its numbers is left to a default elsewhere."""

    model: str
    weights_sha256: str
    compressor: str
    """Canonical spec string."""
    code: str
    """Hash of the syntax of all code that the trial runs (:mod:`kvbench.runs.code_identity`)."""
    packages: dict[str, str] = Field(default_factory=dict)
    """Versions of the packages that can change its numbers."""
    workload: Workload
    dtype: str
    device: str
    threads: PositiveInt
    seed: int
    attention: str = "auto"
    text_sha256: dict[str, str] = Field(default_factory=dict)
    """Text name to the sha256 of its content."""
    memory_limit: Annotated[ByteCount | None, Field(exclude_if=operator.not_)] = None
    """Bytes that its process may take (:mod:`kvbench.hardware.memory_limit`); None: what the machine has."""

    @property
    def id(self) -> str:
        """16 hex digits of the hash of the content and the schema version."""
        return digest({"schema": SCHEMA, "trial": content(self)})[:16]

    def without_code(self) -> Trial:
        """The same trial whatever code runs it, kvbench's and that of packages: what is measured anew, not another."""
        return self.model_copy(update={"code": "", "packages": {}})

    @property
    def key(self) -> str:
        """The name under which results are compared: ``model | compressor | workload``."""
        return f"{self.model} | {self.compressor} | {self.workload.name}"
