"""What is measured: a workload, and the trial that binds it to a model, a compressor and a machine setting.

A trial's id is the hash of everything that can change its numbers; a trial that ran once under an id need not run
again. Its key is the short name under which results of different days are compared.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator

from kvbench.runs.canonical import content, digest

SCHEMA = 2
"""Version of every model in :mod:`kvbench.runs.records` and of the store; a change needs a word in ``migrations``."""


class Frozen(BaseModel):
    """Base of all stored models: immutable, unknown fields refused, non-finite floats kept as strings in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", protected_namespaces=())


class QualityWorkload(Frozen):
    """Teacher forcing: each document's first ``prefix`` tokens are prefilled, the rest is scored ``block`` at a time.

    The documents are the ``split``'s: what is quoted comes from "test", what a setting is chosen by from "development".
    ``calibration_windows`` windows of ``calibration_length`` tokens of ``calibration_text`` feed the calibration. The
    first ``decode`` scored tokens of each document are also decoded one by one, through the decode kernels.
    """

    text: str = "essays"
    split: Literal["test", "development"] = "test"
    calibration_text: str = "essays"
    calibration_windows: PositiveInt = 8
    calibration_length: PositiveInt = 1024
    documents: PositiveInt = 2
    length: PositiveInt = 1024
    prefix: PositiveInt = 256
    block: PositiveInt = 256
    decode: NonNegativeInt = 0

    @model_validator(mode="after")
    def _leaves_tokens_to_score(self) -> QualityWorkload:
        if self.prefix + 1 >= self.length:
            raise ValueError(f"prefix ({self.prefix}) must be at least 2 shorter than length ({self.length})")
        scored = self.length - 1 - self.prefix
        if self.decode > scored:
            raise ValueError(f"decode ({self.decode}) must be at most the {scored} scored tokens of a document")
        return self


class SpeedWorkload(Frozen):
    """Decoding of what follows ``prompt`` tokens in the document: turns of ``steps`` steps, ``rounds`` of them timed
    after ``warmup`` untimed ones.

    The timed steps, rounds · steps, must be whole block cycles of the compressor: multiples of its ``block``.
    """

    batch: PositiveInt = 1
    prompt: PositiveInt = 2048
    steps: PositiveInt = 16
    rounds: PositiveInt = 6
    warmup: NonNegativeInt = 2


class MemoryWorkload(Frozen):
    """The cache's bytes after ``prompt`` prefilled tokens, their maximum over ``steps`` decoded ones, and peak memory.

    Peaks need a process of their own, where the prompt is prefilled ``chunk`` tokens at a time, compressed in between,
    and at once. Without ``peaks`` the bytes are walked in the runner's process. Blocks of tokens leave the
    recent window together, so ``steps`` should be no less than a block (32 tokens unless a spec says otherwise).
    """

    batch: PositiveInt = 1
    prompt: PositiveInt = 2048
    steps: NonNegativeInt = 32
    chunk: PositiveInt = 256
    peaks: bool = True


class Workload(Frozen):
    """A named set of measurements; a part that is None is not measured."""

    name: str
    quality: QualityWorkload | None = None
    speed: SpeedWorkload | None = None
    memory: MemoryWorkload | None = None

    @model_validator(mode="after")
    def _measures_something(self) -> Workload:
        if not self.name or "|" in self.name:
            raise ValueError(f"workload name {self.name!r} must not be empty nor contain '|'")
        if not self.parts:
            raise ValueError(f"workload {self.name!r} measures nothing: give it quality, speed or memory")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that are measured: some of "memory", "speed", "quality"."""
        return tuple(part for part in ("memory", "speed", "quality") if getattr(self, part) is not None)


class Trial(Frozen):
    """One measurement to make, fully resolved: nothing that changes its numbers is left to a default elsewhere."""

    model: str
    weights_sha256: str
    compressor: str
    """Canonical spec string."""
    code: str
    """Hash of the syntax of all code that the trial runs (:mod:`kvbench.runs.code_identity`)."""
    packages: dict[str, str] = {}
    """Versions of the packages that can change its numbers."""
    workload: Workload
    dtype: str
    device: str
    threads: PositiveInt
    seed: int
    attention: str = "auto"
    text_sha256: dict[str, str] = {}
    """Text name to the sha256 of its content."""

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
