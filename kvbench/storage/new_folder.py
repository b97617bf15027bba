"""Folders outside the cache that a person has named: made whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kvbench.errors import KvbenchError
from kvbench.storage.files import sync_folder
from kvbench.storage.folders import in_partial


def require_vacant(target: Path) -> None:
    """Refuse to write where something is.

    Raises:
        KvbenchError: a file, or a folder that is not empty.
    """
    if target.is_dir() and any(target.iterdir()):
        raise KvbenchError(f"folder {target} is not empty; choose another, or empty it")
    if target.exists() and not target.is_dir():
        raise KvbenchError(f"{target} is a file; choose a folder that does not exist yet")


def new_folder(target: Path, build: Callable[[Path], None]) -> None:
    """Make ``target``, a folder outside the cache that a person named, by ``build(partial)`` beside it.

    Raises:
        KvbenchError: something is there already.
        OSError: it cannot be written.
    """
    target = target.expanduser().resolve()
    require_vacant(target)
    target.parent.mkdir(parents=True, exist_ok=True)

    def into_place(partial: Path) -> None:
        require_vacant(target)  # building takes a while
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
        sync_folder(target.parent)

    in_partial(target, build, into_place)
