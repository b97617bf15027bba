"""A run written down as suite files and commands, so that anybody can make it again, whole or a single row."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from kvbench.runs.records import Record
from kvbench.runs.suites import Suite, load_suite, suite_names
from kvbench.runs.trials import Trial, Workload


@dataclass(frozen=True)
class Recipe:
    """A suite file's name and content, and the command that runs it; ``threads`` is what torch had then.

    ``rows`` are its compressors with the command that measures each alone.
    """

    file: str
    suite: str
    command: str
    threads: int
    rows: tuple[tuple[str, str], ...]


@dataclass
class _Draft:
    """Trials that fit into one suite: one dtype, seed, device, thread count and memory, one workload under a name."""

    setting: tuple[str, int, str, int, int | None]
    workloads: dict[str, Workload] = field(default_factory=dict)
    models: dict[str, dict[str, None]] = field(default_factory=dict)
    """Workload name to the models that ran it, in order."""
    compressors: dict[str, None] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)

    def takes(self, trial: Trial) -> bool:
        """Whether the trial fits in beside the others."""
        same = self.workloads.get(trial.workload.name, trial.workload) == trial.workload
        return same and self.setting == _setting(trial)

    def add(self, trial: Trial) -> None:
        """Make the suite include the trial."""
        self.workloads[trial.workload.name] = trial.workload
        self.models.setdefault(trial.workload.name, {})[trial.model] = None
        self.compressors[trial.compressor] = None
        self.trials.append(trial)


def recipes(records: Iterable[Record]) -> list[Recipe]:
    """Suites whose trials include those of the records; one suite unless settings or same-named workloads differ."""
    drafts: list[_Draft] = []
    for record in records:
        draft = next((draft for draft in drafts if draft.takes(record.trial)), None)
        if draft is None:
            draft = _Draft(_setting(record.trial))
            drafts.append(draft)
        draft.add(record.trial)
    return [_recipe(draft, "suite" if len(drafts) == 1 else f"suite-{n}") for n, draft in enumerate(drafts, 1)]


def command(trial: Trial, suite: str) -> str:
    """The command that measures this trial alone: of a built-in suite with its workload, else of the file ``suite``.

    Such a suite may have other workloads too, which are then measured as well.
    """
    holding = (each for each, workloads in _built_in() if each.seed == trial.seed and trial.workload in workloads)
    known = next(holding, None)
    words = [*_verb(trial.memory_limit).split(), known.name if known else suite]
    if known is None or known.models != (trial.model,):
        words += ["--model", trial.model]
    words += ["--compressor", trial.compressor]
    if known is None or known.dtype != trial.dtype:
        words += ["--dtype", trial.dtype]
    if trial.device != "cpu":
        words += ["--device", trial.device]
    if trial.attention != "auto":
        for word in trial.attention.split("+"):
            words += ["--attention" if word == "reference" else "--read", word]
    return shlex.join([*words, "--threads", str(trial.threads)]) + _limited(trial.memory_limit)


def _verb(memory_limit: int | None) -> str:
    """Memory is limited for processes, of which a sweep starts one a trial."""
    return "kvbench run --suite" if memory_limit is None else "kvbench sweep"


def _limited(memory_limit: int | None) -> str:
    return "" if memory_limit is None else f" --memory-limit {memory_limit}"


@lru_cache(maxsize=1)
def _built_in() -> tuple[tuple[Suite, tuple[Workload, ...]], ...]:
    """The built-in suites with their workloads as trials carry them."""
    suites = [load_suite(name) for name in suite_names()]
    return tuple((suite, tuple(workload.plain() for workload in suite.workload)) for suite in suites)


def _setting(trial: Trial) -> tuple[str, int, str, int, int | None]:
    return trial.dtype, trial.seed, trial.device, trial.threads, trial.memory_limit


def _recipe(draft: _Draft, name: str) -> Recipe:
    _, _, device, threads, limit = draft.setting
    file = f"{name}.toml"
    rows = dict.fromkeys((trial.compressor, command(trial, file)) for trial in draft.trials)
    whole = f"{_verb(limit)} {file} --device {device}{_limited(limit)}"
    return Recipe(file, "\n".join(_toml(draft, name)) + "\n", whole, threads, tuple(rows))


def _toml(draft: _Draft, name: str) -> Iterator[str]:
    dtype, seed, *_ = draft.setting
    models = list(dict.fromkeys(model for ran in draft.models.values() for model in ran))
    yield f"name = {_value(name)}"
    yield f"models = {_value(models)}"
    yield f"compressors = {_value(list(draft.compressors))}"
    yield f"dtype = {_value(dtype)}"
    yield f"seed = {seed}"
    for workload in draft.workloads.values():
        yield from ("", "[[workload]]", f"name = {_value(workload.name)}")
        ran = list(draft.models[workload.name])
        if ran != models:
            yield f"models = {_value(ran)}"
        for part, settings in workload.parts.items():
            yield f"[workload.{part}]"
            yield from (f"{key} = {_value(value)}" for key, value in settings.model_dump().items())


def _value(value: Any) -> str:
    """A JSON string, number or list of strings is a TOML one too; lists stand a line per entry."""
    if isinstance(value, list):
        return "[\n" + "".join(f"  {_value(entry)},\n" for entry in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
