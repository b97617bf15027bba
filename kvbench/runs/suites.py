"""Suites: many trials named in one TOML file, every model with every compressor under every workload.

The built-in suites are package data in ``kvbench/runs/builtin``, and nowhere else: an installed wheel and a clone
read the same files through ``importlib.resources``, with nothing to copy or to keep in step.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator, model_validator

from kvbench.cache.spans import ExactDtype
from kvbench.errors import KvbenchError, unknown
from kvbench.measure.parts import PARTS
from kvbench.measure.parts.quality import QualityWorkload
from kvbench.runs.matrix import KEYS, MOST_CELLS, Cell, expand_matrix
from kvbench.runs.trials import Workload
from kvbench.storage.frozen import Frozen

QUOTED_DOCUMENTS, QUOTED_LONG_DOCUMENTS, QUOTED_LONG = 20, 12, 4096
"""The least documents of a quoted suite, and of one whose documents have as many tokens as the last number, of which
texts have fewer; intervals are printed from 12 on (:data:`kvbench.measure.statistics.LEAST_FOR_MEAN`)."""


class SuiteWorkload(Workload):
    """A workload as a suite states it: ``models`` narrows it to some of the suite's models.

    ``calibrated_only`` leaves out compressors that no calibration goes into.
    """

    models: tuple[str, ...] | None = None
    calibrated_only: bool = False

    def plain(self) -> Workload:
        """The workload itself, as trials carry it."""
        return Workload.model_validate({"name": self.name, **self.parts})


class Suite(Frozen):
    """The content of a suite file.

    A ``quoted`` suite's figures may stand in a text: it scores the test split, on documents enough for intervals.
    ``exact`` is the dtype of the exact spans of every spec that is solved for equal bytes, and ``solved_for`` the bits
    per element that such specs stand for. ``leave_out`` are cells of a matrix that are not run
    (:mod:`kvbench.runs.matrix`).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
    models: tuple[str, ...] = Field(min_length=1)
    compressors: tuple[str, ...] = Field(min_length=1)
    dtype: str = "float32"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    quoted: bool = False
    exact: ExactDtype = "model"
    solved_for: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    leave_out: frozenset[Cell] = frozenset()
    workload: tuple[SuiteWorkload, ...] = Field(min_length=1)

    def narrowed(
        self,
        model: str | None = None,
        compressors: Sequence[str] | None = None,
        dtype: str | None = None,
        exact: ExactDtype | None = None,
        solved_for: dict[str, tuple[float, ...]] | None = None,
    ) -> Suite:
        """This suite with another model, compressors, dtype and so on; None keeps the suite's own."""
        changes: dict[str, object] = {}
        if model is not None:
            workloads = tuple(workload.model_copy(update={"models": None}) for workload in self.workload)
            changes |= {"models": (model,), "workload": workloads}
        if compressors:
            changes["compressors"] = tuple(compressors)
        given = {"dtype": dtype, "exact": exact, "solved_for": solved_for}
        changes |= {name: value for name, value in given.items() if value is not None}
        return self.model_copy(update=changes)

    @field_validator("models", "compressors")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        _refuse_repeats(names)
        return names

    @model_validator(mode="after")
    def _workloads_fit(self) -> Suite:
        _refuse_repeats([workload.name for workload in self.workload])
        for workload in self.workload:
            for model in workload.models or ():
                if model not in self.models:
                    raise unknown(f"model of workload {workload.name}", model, self.models)
            if self.quoted and workload.quality is not None:
                _require_quotable(workload.name, workload.quality)
        return self


_TABLES: dict[str, type[Frozen]] = {"workload": SuiteWorkload, **{name: part.settings for name, part in PARTS.items()}}


def suite_names() -> list[str]:
    """The built-in suites."""
    files = resources.files("kvbench.runs").joinpath("builtin").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def suite_path(name: str | Path) -> Path:
    """The file of a suite that :func:`load_suite` loads."""
    return Path(name) if str(name).endswith(".toml") else Path(__file__).parent / "builtin" / f"{name}.toml"


def load_suite(name: str | Path, profile: str | None = None, most: int = MOST_CELLS) -> Suite:
    """A built-in suite by name, or the suite of a ``.toml`` file; of a matrix, at ``most`` that many cells.

    Raises:
        KvbenchError: it does not exist, or what is wrong with it.
    """
    if str(name).endswith(".toml"):
        path = Path(name)
        try:
            return parse_suite(path.read_text("utf-8"), str(path), profile, most)
        except (OSError, UnicodeDecodeError) as error:
            raise KvbenchError(f"cannot read suite {path}: {error}") from error
    if name not in suite_names():
        raise unknown("suite", str(name), [*suite_names(), "<path of a .toml file>"])
    text = resources.files("kvbench.runs").joinpath("builtin", f"{name}.toml").read_text("utf-8")
    return parse_suite(text, str(name), profile, most)


def parse_suite(text: str, source: str, profile: str | None = None, most: int = MOST_CELLS) -> Suite:
    """The suite of TOML text; ``source`` names it in errors. Raises KvbenchError."""
    try:
        document, leave_out = expand_matrix(tomllib.loads(text), profile, most)
        return Suite.model_validate(document | {"leave_out": leave_out} if leave_out else document)
    except KvbenchError as error:
        raise KvbenchError(f"suite {source}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise KvbenchError(f"suite {source} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise _explain(error, source) from error


def expand(suite: Suite, calibrates: Callable[[str], bool] | None = None) -> list[tuple[str, str, Workload]]:
    """The suite's (model, compressor spec, workload) triples, model by model so that each is loaded once.

    ``calibrates`` tells of a spec whether it is fitted from calibration; None takes all for such.
    """
    return [
        (model, compressor, workload.plain())
        for model in suite.models
        for workload in suite.workload
        if workload.models is None or model in workload.models
        for compressor in suite.compressors
        if calibrates is None or calibrates(compressor) or not workload.calibrated_only
        if (model, compressor, workload.name) not in suite.leave_out
    ]


def _explain(error: ValidationError, source: str) -> KvbenchError:
    """The first problem, in one line; unknown keys come first, since a misspelt key is also a missing one."""
    problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    path = problem["loc"]
    where = ".".join(str(part) for part in path) or "the suite"
    if problem["type"] != "extra_forbidden":
        return KvbenchError(f"suite {source}: {where}: {problem['msg'].removeprefix('Value error, ')}")
    tables = [str(part) for part in path[:-1] if isinstance(part, str)]
    known = _TABLES[tables[-1]].model_fields if tables else (*Suite.model_fields, *KEYS)
    return unknown(f"key in suite {source}, {'.'.join(tables) or 'top level'}:", str(path[-1]), known)


def _require_quotable(name: str, quality: QualityWorkload) -> None:
    """Refuse what a reader of quoted figures would not accept: tuned on, or too few documents."""
    least = QUOTED_LONG_DOCUMENTS if quality.length >= QUOTED_LONG else QUOTED_DOCUMENTS
    if quality.split != "test":
        raise ValueError(f"workload {name!r} of a quoted suite scores the {quality.split} split; set split to 'test'")
    if quality.documents < least:
        raise ValueError(
            f"workload {name!r} of a quoted suite scores {quality.documents} documents of {quality.length} tokens, "
            f"{least} are needed; raise documents, or say quoted = false"
        )


def _refuse_repeats(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is named twice")
