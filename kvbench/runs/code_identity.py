"""Which code a trial runs, as a hash of its syntax: a trial is measured anew when this changes, and only then.

From the modules that a trial enters, imports are followed through the sources of kvbench and of the packages that bring
its parts, so a new module is covered by being imported. What is hashed of each is its syntax tree: comments, docstrings
and layout are not in it. Left out are code that only displays, stores or chooses, the parts of a workload that are not
measured, and the kernels of other devices.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import kvbench
from kvbench.compressors.compressor import Compressor
from kvbench.compressors.stock import QuantizedStock
from kvbench.hardware.environment import package_versions
from kvbench.measure.parts import PARTS

ROOT = Path(kvbench.__file__).parents[1]
"""The folder that the package ``kvbench`` lies in."""

SHARED = ("kvbench.runs.measuring", "kvbench.runs.resolve", "kvbench.measure.bench")
"""What every trial enters."""
ALWAYS_MEASURED = ("kvbench.compressors.methods.none", "kvbench.compressors.methods.hf")
"""The baselines that every trial is compared with; the registry imports methods by their names, at run time."""
CHOOSING = ("kvbench.compressors.equal_bytes",)
"""What ``SHARED`` imports only to choose settings; those of a trial are chosen already."""
QUIET = {
    "kvbench.cli",
    "kvbench.errors",
    "kvbench.gate",
    "kvbench.hardware.environment",
    "kvbench.measure.parts",
    "kvbench.measure.results",
    "kvbench.report",
    "kvbench.runs",
    "kvbench.storage.frozen",
}
"""Modules and packages that display or store numbers and compute none. The schema's version is in the id by itself.
The parts of a workload are imported as a registry; those that are measured are entered one by one."""

KERNELS = "kvbench.kernels.choice"
LOADERS = {"cpu": "_cpu", "cuda": "_cuda"}
"""The functions of ``KERNELS`` that import a device's kernels."""

PACKAGES = {"": ("gguf", "numba", "numpy", "scipy", "torch", "transformers"), "cuda": ("triton",)}
"""Packages whose versions can change a number: on every device, and on one."""


@dataclass(frozen=True)
class Import:
    """A module's name as imported, and the function of the importing module that does it ("" for the module itself)."""

    name: str
    within: str


@dataclass(frozen=True)
class Source:
    """One module: the hash of its syntax tree, and what it imports."""

    sha256: str
    imports: tuple[Import, ...]


@dataclass
class Walk:
    """Follows imports from module to module, within ``roots``: top-level packages and the folders that they lie in."""

    roots: dict[str, Path]
    device: str
    sources: dict[str, Source] = field(default_factory=dict)

    def enter(self, name: str) -> None:
        """Read the module ``name`` and all that it imports of ``roots``."""
        waiting = [name]
        while waiting:
            name = waiting.pop()
            root = self.roots.get(name.partition(".")[0])
            if root is None or name in self.sources or (source := _read(root, name)) is None:
                continue
            self.sources[name] = source
            waiting += [imported.name for imported in source.imports if self._follows(name, imported)]

    def _follows(self, importer: str, imported: Import) -> bool:
        if not QUIET.isdisjoint(_with_parents(imported.name)):
            return False
        if importer in SHARED:
            return imported.name not in CHOOSING
        others = {function for device, function in LOADERS.items() if device != self.device}
        return importer != KERNELS or imported.within not in others


def code_sha256(compressor: Compressor, parts: tuple[str, ...], device: str, root: Path = ROOT) -> str:
    """Hash of the syntax of all code that measuring ``parts`` of ``compressor`` runs.

    ``parts`` are names of :data:`kvbench.measure.parts.PARTS`; ``device`` is one like "cpu" or "cuda:1";
    ``root`` is the folder that the package ``kvbench`` lies in.
    """
    measured = [PARTS[part].settings.__module__ for part in parts]
    return _sha256(compressor, (*SHARED, *ALWAYS_MEASURED, *measured), device.partition(":")[0], root)


def solving_sha256(compressor: Compressor, root: Path = ROOT) -> str:
    """Hash of all code that decides at which settings ``compressor`` takes how many bytes."""
    return _sha256(compressor, CHOOSING, "cpu", root)


def _sha256(compressor: Compressor, modules: tuple[str, ...], device: str, root: Path) -> str:
    walk = Walk({"kvbench": root}, device)
    brought = [type(part).__module__ for part in compressor.parts]
    brought += [] if compressor.saved is None else compressor.saved.file.modules
    for package in {name.partition(".")[0] for name in brought} - {"kvbench"}:
        if (folder := _folder(package)) is not None:  # without one a saved plan is refused when it is loaded
            walk.roots[package] = folder
    for name in (*modules, *brought):
        walk.enter(name)
    digest = hashlib.sha256()
    for name, source in sorted(walk.sources.items()):
        digest.update(f"{name} {source.sha256}\n".encode())
    if compressor.saved is not None:
        digest.update(compressor.saved.content())
    return digest.hexdigest()


def packages(compressor: Compressor, device: str) -> dict[str, str]:
    """Versions of the installed packages that can change a number of ``compressor`` on ``device``, by name."""
    names = {*PACKAGES[""], *PACKAGES.get(device.partition(":")[0], ())}
    names |= {part.package for part in compressor.parts if isinstance(part, QuantizedStock)}
    return package_versions(tuple(sorted(names)))


def _folder(package: str) -> Path | None:
    """The folder that a top-level package or module lies in; None if it cannot be imported or has no source."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parents[0 if spec.submodule_search_locations is None else 1]


def _read(root: Path, name: str) -> Source | None:
    """The module ``name`` under ``root``; None if there is none of that name (it is a class, or has no source)."""
    path = root.joinpath(*name.split("."))
    options = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    file = next((option for option in options if option.is_file()), None)
    if file is None:
        return None
    return _parsed(file.read_bytes(), name if file.stem == "__init__" else name.rpartition(".")[0])


@cache
def _parsed(text: bytes, package: str) -> Source:
    """The module with this source in this package; kept, because every trial reads nearly the same modules."""
    tree = ast.parse(text)
    return Source(hashlib.sha256(code_text(tree).encode()).hexdigest(), tuple(_imports(tree.body, package)))


def code_text(tree: ast.AST) -> str:
    """The syntax tree as text, without docstrings, comments and positions; much faster than :func:`ast.dump`."""
    words: list[str] = []
    waiting: list[object] = [tree]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.AST):
            words.append(repr(node))
            continue
        words.append(type(node).__name__)
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                kept = [item for item in value if not _is_text(item)]
                if kept:
                    words.append(f"{name}{len(kept)}")
                    waiting += kept
            elif value is not None or name == "value":  # None is a constant's value, else an absent field
                words.append(name)
                waiting.append(value)
    return " ".join(words)


def _is_text(node: object) -> bool:
    """Whether a statement is a text and nothing else: a docstring, also of a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(body: list[ast.stmt], package: str, within: str = "") -> Iterator[Import]:
    """What the statements of a module of ``package`` import when they run, also inside functions and branches."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (Import(name, within) for alias in node.names for name in _with_parents(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            yield from (Import(name, within) for name in _with_parents(base))
            yield from (Import(f"{base}.{alias.name}", within) for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _imports(node.body, package, within or node.name)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from _imports(node.orelse, package, within)
        else:
            for name in ("body", "orelse", "finalbody", "handlers", "cases"):
                yield from _imports(getattr(node, name, []), package, within)


def _base(node: ast.ImportFrom, package: str) -> str:
    """The absolute name of what ``from … import`` names, seen from a module of ``package``."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *filter(None, [node.module])])


@cache
def _with_parents(name: str) -> tuple[str, ...]:
    """``a.b.c`` runs ``a`` and ``a.b`` as well."""
    names = name.split(".")
    return tuple(".".join(names[: end + 1]) for end in range(len(names)))
