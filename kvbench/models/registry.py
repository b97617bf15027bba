"""Which models exist: the names in ``registry.toml``, hub ids listed there, ``random:<family>`` and local folders."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from kvbench.errors import KvbenchError, unknown
from kvbench.models.random_families import parse
from kvbench.storage.fetching import Wheel

Source = Literal["wheel", "hub", "folder", "random"]


@dataclass(frozen=True)
class ModelEntry:
    """What kvbench knows about a model before it is fetched; which fields are set depends on ``source``."""

    name: str
    source: Source
    family: str = "?"
    licence: str = "?"
    context_length: int | None = None
    """Tokens; None means: as the model's own config says."""

    wheels: tuple[Wheel, ...] = ()
    """wheel: their members, joined in this order, are one GGUF file."""
    gguf_sha256: str = ""
    probe_ids: tuple[int, ...] = ()
    """wheel: token ids of ``conversion.PROBE`` where they are known from another source than this GGUF reader."""
    accept: str = ""
    """wheel: word that must stand in ``KVBENCH_ACCEPT_LICENSES`` before anything is fetched; empty: free to fetch."""

    repo: str = ""
    revision: str = ""
    """hub: the pinned commit."""
    path: Path | None = None
    """folder: as ``save_pretrained`` writes it."""


def find(name: str) -> ModelEntry:
    """The entry for a registry name, a listed hub id, ``random:<family>`` or the path of a local folder.

    Raises:
        KvbenchError: no such model, and what exists; or no such size of a random one.
    """
    entries = _entries()
    if name in entries:
        return entries[name]
    for entry in entries.values():
        if entry.repo == name:
            return entry
    if name.startswith("random:"):
        return ModelEntry(name, "random", family=parse(name)[0], licence="none")
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _folder(name, path)
    raise unknown("model", name, [*entries, "random:<family>", "<path of a save_pretrained folder>"])


def names() -> list[str]:
    """All registry names, in the order of ``registry.toml``."""
    return list(_entries())


def default() -> str:
    """Name of the model that is used when none is requested."""
    return str(_document()["default"])


def _folder(name: str, path: Path) -> ModelEntry:
    if not (path / "config.json").is_file():
        raise KvbenchError(f"folder {name} has no config.json; give a folder written by save_pretrained")
    return ModelEntry(name, "folder", path=path.resolve())


@cache
def _document() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


@cache
def _entries() -> dict[str, ModelEntry]:
    return {name: _entry(name, dict(table)) for name, table in _document()["models"].items()}


def _entry(name: str, table: dict[str, Any]) -> ModelEntry:
    wheels = tuple(Wheel(w["requirement"], w["sha256"], tuple(w["members"])) for w in table.pop("wheels", ()))
    probe_ids = tuple(table.pop("probe_ids", ()))
    return ModelEntry(name, wheels=wheels, probe_ids=probe_ids, **table)
