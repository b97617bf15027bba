"""Suite files with axes: a table ``[matrix]`` whose values are put where ``{axis}`` stands.

    compressors = ["none", "pca:rank={rank}+int:bits={bits}"]

    [matrix]
    rank = [0.25, 0.5]
    bits = [4, 8]
    tokens = [1024, 4096]

    [[exclude]]                  # of every table here, cells that have all of its values are left out
    rank = 0.25
    tokens = 4096

    [[workload]]
    name = "tokens-{tokens}"
    [workload.speed]
    prompt = "{tokens}"          # alone between quotes, the value keeps its type

    [defaults.speed]             # what every workload's table of that name has unless it says otherwise
    steps = 4

    [profiles.smoke.matrix]      # with --profile smoke these replace what stands above
    tokens = [1024]

Here nothing is checked but the axes: what comes out is a plain suite, and is checked as one.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from kvbench.errors import KvbenchError, unknown

KEYS = ("matrix", "exclude", "defaults", "profiles")
"""What a suite file may have on top of a suite's keys."""

MOST_CELLS = 1000
"""A matrix of more is most likely a slip; ``--yes`` takes it all the same."""

Table: TypeAlias = dict[str, Any]
Value: TypeAlias = str | int | float | bool
Cell: TypeAlias = tuple[str, str, str]
"""Model, compressor spec and name of the workload."""

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Filled:
    """What a template became with one value for each axis that stands in it."""

    content: Any
    values: Mapping[str, Value]


def expand_matrix(document: Table, profile: str | None = None, most: int = MOST_CELLS) -> tuple[Table, frozenset[Cell]]:
    """The plain suite of a suite file's content, and the cells that ``exclude`` leaves out.

    A cell is left out, too, if its compressor and its workload have different values of one axis.

    Raises:
        KvbenchError: an unknown profile or axis, an axis without values or used nowhere, or more cells than ``most``.
    """
    _refuse_other_shapes(document)
    suite = _with_profile(document, profile)
    _refuse_other_shapes(suite)
    axes, excluded = _axes(suite.pop("matrix", {})), suite.pop("exclude", [])
    if defaults := suite.pop("defaults", {}):
        _with_defaults(suite, defaults)
    if not axes and not excluded:
        return suite, frozenset()
    compressors, workloads = _listed(suite, "compressors", str), _listed(suite, "workload", dict)
    used = {name for template in (*compressors, *workloads) for name in _used(template, axes)}
    for name in axes:
        if name not in used:
            raise KvbenchError(f"axis {name!r} of the matrix is used nowhere; write {{{name}}} where its values go")
    models = _listed(suite, "models", str)
    _refuse_many(axes, compressors, workloads, len(models), most)
    specs = [filled for template in compressors for filled in _filled(template, axes)]
    loads = [_named(filled) for template in workloads for filled in _filled(template, axes)]
    suite["compressors"] = list(dict.fromkeys(filled.content for filled in specs))
    suite["workload"] = [filled.content for filled in loads]
    return suite, _left_out(models, specs, loads, [_exclusion(each, axes) for each in excluded])


def _refuse_other_shapes(suite: Table) -> None:
    for name in ("matrix", "defaults", "profiles"):
        if not isinstance(suite.get(name, {}), dict):
            raise KvbenchError(f"{name} must be a table, [{name}]")
    for name in ("defaults", "profiles"):
        for each, value in suite.get(name, {}).items():
            if not isinstance(value, dict):
                raise KvbenchError(f"{name}.{each} must be a table, [{name}.{each}]")
    excluded = suite.get("exclude", [])
    if not isinstance(excluded, list) or not all(isinstance(each, dict) and each for each in excluded):
        raise KvbenchError("exclude must be tables with a value in each, [[exclude]]")


def _with_profile(document: Table, profile: str | None) -> Table:
    suite = dict(document)
    profiles = suite.pop("profiles", {})
    if profile is None:
        return suite
    if profile not in profiles:
        raise unknown("profile", profile, profiles)
    return _merged(suite, profiles[profile])


def _merged(below: Table, above: Table) -> Table:
    """``below`` with what ``above`` says: table by table, everything else replaced as a whole."""
    merged = dict(below)
    for name, value in above.items():
        both_tables = isinstance(value, dict) and isinstance(below.get(name), dict)
        merged[name] = _merged(below[name], value) if both_tables else value
    return merged


def _with_defaults(suite: Table, defaults: Table) -> None:
    workloads = _listed(suite, "workload", dict)
    for part, settings in defaults.items():
        users = [workload for workload in workloads if isinstance(workload.get(part), dict)]
        if not users:
            measured = {name for workload in workloads for name, value in workload.items() if isinstance(value, dict)}
            raise unknown("table of no workload in defaults:", part, measured)
        for workload in users:
            workload[part] = _merged(settings, workload[part])


def _axes(matrix: Table) -> dict[str, list[Value]]:
    for name, values in matrix.items():
        plain = isinstance(values, list) and all(isinstance(value, str | int | float) for value in values)
        if not plain or not values or len({repr(value) for value in values}) < len(values):
            raise KvbenchError(f"axis {name!r} of the matrix must be a list of different texts or numbers")
    return dict(matrix)


def _listed(suite: Table, name: str, kind: type) -> list[Any]:
    """The list of that name.

    Raises:
        KvbenchError: it is missing, or holds something else.
    """
    value = suite.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(each, kind) for each in value):
        what = f"[[{name}]] tables" if kind is dict else "a list of texts"
        raise KvbenchError(f"{name}: {what} must be given")
    return value


def _placeholders(template: Any) -> set[str]:
    if isinstance(template, str):
        return set(_PLACEHOLDER.findall(template))
    parts = template.values() if isinstance(template, dict) else template if isinstance(template, list) else ()
    return {name for part in parts for name in _placeholders(part)}


def _used(template: Any, axes: Mapping[str, list[Value]]) -> list[str]:
    """The axes in ``template``, in the matrix's order."""
    names = _placeholders(template)
    for name in sorted(names - axes.keys()):
        raise unknown("axis", name, axes)
    return [name for name in axes if name in names]


def _refuse_many(
    axes: Mapping[str, list[Value]], compressors: list[Any], workloads: list[Any], models: int, most: int
) -> None:
    sizes = [
        sum(math.prod(len(axes[name]) for name in _used(template, axes)) for template in templates)
        for templates in (compressors, workloads)
    ]
    if (cells := models * math.prod(sizes)) > most:
        raise KvbenchError(
            f"the matrix has {cells:,} cells: {models} models × {sizes[0]:,} compressors × {sizes[1]:,} workloads; "
            f"more than {most:,} are run with --yes only"
        )


def _filled(template: Any, axes: Mapping[str, list[Value]]) -> Iterator[Filled]:
    names = _used(template, axes)
    for values in itertools.product(*(axes[name] for name in names)):
        given = dict(zip(names, values, strict=True))
        yield Filled(_fill(template, given), given)


def _fill(template: Any, values: Mapping[str, Value]) -> Any:
    if isinstance(template, dict):
        return {name: _fill(part, values) for name, part in template.items()}
    if isinstance(template, list):
        return [_fill(part, values) for part in template]
    if not isinstance(template, str):
        return template
    alone = _PLACEHOLDER.fullmatch(template)
    return values[alone[1]] if alone else _PLACEHOLDER.sub(lambda match: str(values[match[1]]), template)


def _named(workload: Filled) -> Filled:
    """With values in its name; a name that does not say them all gets the rest appended."""
    content = dict(workload.content)
    name = str(content.get("name", ""))
    for axis, value in workload.values.items():
        if str(value) not in re.split(r"[^A-Za-z0-9.]+", name):
            name += f" {axis}={value}"
    return Filled(content | {"name": name}, workload.values)


def _exclusion(table: Table, axes: Mapping[str, list[Value]]) -> Table:
    for name in table:
        if name not in axes and name != "model":
            raise unknown("axis in exclude:", name, [*axes, "model"])
    return table


def _left_out(models: list[Any], specs: list[Filled], loads: list[Filled], excluded: list[Table]) -> frozenset[Cell]:
    """What no exclusion leaves in: two templates may make one spec, of which one stays."""
    every, kept = set[Cell](), set[Cell]()
    for model, spec, load in itertools.product(models, specs, loads):
        cell = (model, spec.content, load.content["name"])
        every.add(cell)
        values = {"model": model, **load.values, **spec.values}
        agree = all(load.values.get(axis, value) == value for axis, value in spec.values.items())
        if agree and not any(_matches(table, values) for table in excluded):
            kept.add(cell)
    if not kept:
        raise KvbenchError("every cell is excluded; take an [[exclude]] table out")
    return frozenset(every - kept)


def _matches(table: Table, values: Mapping[str, Value]) -> bool:
    """Whether ``values`` has every entry of the table; an entry may list several values."""
    listed = {name: entry if isinstance(entry, list) else [entry] for name, entry in table.items()}
    return all(name in values and values[name] in entries for name, entries in listed.items())
