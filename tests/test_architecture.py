"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kvbench"

FLOORS = (
    ("__main__",),
    ("api", "cli", "pytest_plugin", "testing"),
    ("conformance", "gate", "report"),
    ("conversion", "healing", "runs"),
    ("measure", "projection"),
    ("tasks",),
    ("compressors",),
    ("cache", "calibration"),
    ("kernels",),
    ("codecs", "selectors"),
    ("hooks",),
    ("models", "texts"),
    ("hardware", "storage"),
    ("errors",),
)
"""Packages from the roof to the ground. A module imports from its own package and from floors below."""


MOST_PARAMETERS = 8
GENERATED = "kernels/cpu/llvm/"
"""Intrinsics whose parameters are the operands of what they emit."""

PRIVATE = frozenset(
    {"worth", "ask", "asked", "ends", "hide", "soften", "still", "turning", "meaning", "own", "found", "held"}
)
"""Words that mean nothing to a colleague from another lab, or everything."""


@cache
def modules() -> dict[str, ast.Module]:
    """Path in the package → syntax tree."""
    return {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))
    }


def package_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def runtime_imports(tree: ast.AST) -> Iterator[str]:
    """Top-level packages of kvbench that a tree imports, at once or later; not those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kvbench":
            parts = (node.module or "").split(".")[1:2]
            yield from parts or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kvbench."))
        yield from runtime_imports(node)


def test_every_package_has_a_floor():
    named = {package for floor in FLOORS for package in floor}
    assert {package_of(path) for path in modules()} - {"__init__"} == named


def test_imports_point_downwards():
    floor = {package: number for number, packages in enumerate(FLOORS) for package in packages}
    upward = [
        f"{path} imports {target}"
        for path, tree in modules().items()
        if path != "__init__.py"
        for target in runtime_imports(tree)
        if target != package_of(path) and floor[target] <= floor[package_of(path)]
    ]
    assert upward == []


def test_functions_take_few_parameters():
    crowded = []
    for path, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not path.startswith(GENERATED):
                names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                taken = [name for name in names if name not in ("self", "cls")]
                if len(taken) > MOST_PARAMETERS:
                    crowded.append(f"{path}: {node.name} takes {len(taken)}")
    assert crowded == []


def names_in(tree: ast.Module) -> Iterator[str]:
    """Every name that the module gives to something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


@pytest.mark.parametrize("path", sorted(modules()))
def test_names_are_the_fields(path: str):
    assert sorted({name for name in names_in(modules()[path]) if name.strip("_").lower() in PRIVATE}) == []
