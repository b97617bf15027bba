"""Documents made of what installed packages say about themselves: one for each module, of its docstrings.

The source files are parsed, never imported. The content depends on the installed versions, and a trial's hash of its
windows with it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from kvbench.errors import KvbenchError

_Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def read_packages(packages: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Module names and their docstrings with the names of what they document as headings, in sorted order.

    Args:
        packages: dotted names, ``"scipy.signal"``; tests and modules without docstrings are left out.

    Raises:
        KvbenchError: a package is not installed or has no such subpackage.
    """
    modules = []
    for package in packages:
        folder = _folder(package)
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            if "tests" not in parts:
                modules.append((name, "\n\n".join(_sections(name, ast.parse(path.read_bytes())))))
    return tuple(sorted((name, text) for name, text in modules if text))


def _folder(package: str) -> Path:
    top, *below = package.split(".")
    spec = find_spec(top)  # finding a top-level package does not import it
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    for place in places:
        folder = Path(place, *below)
        if folder.is_dir():
            return folder
    raise KvbenchError(f"text docstrings reads the sources of package {package}, which is not installed; install {top}")


def _sections(name: str, node: ast.Module | _Documented) -> Iterator[str]:
    """The docstring of ``node`` under its name, then those of the classes and functions in it."""
    docstring = ast.get_docstring(node)
    if docstring:
        yield f"{name}\n\n{docstring}"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return  # what a function defines inside is nobody's documentation
    for child in node.body:
        if isinstance(child, _Documented):
            yield from _sections(child.name if isinstance(node, ast.Module) else f"{name}.{child.name}", child)
