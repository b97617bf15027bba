"""Folders that are either complete or absent, whoever is killed and however many build at once."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kvbench.errors import FetchError, KvbenchError
from kvbench.storage.digests import file_crc32


def cache_dir() -> Path:
    """Folder for fetched and converted files: ``KVBENCH_CACHE``, else ``kvbench`` in the platform's user cache."""
    if override := os.environ.get("KVBENCH_CACHE"):
        return Path(override).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "kvbench"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "kvbench"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvbench"


SUMS = "crc32.json"
"""In every built folder: a checksum of each of its files, against damage and not against forgery."""


def build_folder(target: Path, build: Callable[[Path], None]) -> Path:
    """Return ``target``, first filling it with ``build(partial)`` when it does not exist yet.

    ``build`` writes into ``<target>.partial``, which is flushed to disk and renamed when complete, all under a lock
    beside it. A leftover of a killed process is cleared by the next one.

    Raises:
        FetchError: the cache folder is full or cannot be written.
    """
    if target.is_dir():
        return target
    with storage_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            if not target.is_dir():  # another process may have built it while this one waited
                _build(target, build)
    return target


def _build(target: Path, build: Callable[[Path], None]) -> None:
    def with_sums(partial: Path) -> None:
        build(partial)
        (partial / SUMS).write_text(json.dumps(_checksums(partial)), "utf-8")

    in_partial(target, with_sums, lambda partial: partial.rename(target))


def in_partial(target: Path, build: Callable[[Path], None], into_place: Callable[[Path], object]) -> None:
    """``build`` in a folder beside ``target``, flush it to disk, rename it; whatever happens, none is left behind."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        build(partial)
        _flush_tree(partial)
        into_place(partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_folder(folder: Path) -> Path:
    """``folder``, whose files are what :func:`build_folder` left.

    Raises:
        KvbenchError: a file was changed, added or removed since; the message names it.
    """
    try:
        expected = json.loads((folder / SUMS).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise KvbenchError(f"{folder / SUMS} cannot be read; delete {folder} to have it made anew") from error
    actual = _checksums(folder)
    changed = sorted(name for name in {*expected, *actual} if expected.get(name) != actual.get(name))
    if changed:
        raise KvbenchError(f"{folder / changed[0]} is not what was written there; delete {folder} to have it made anew")
    return folder


def _checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of every file but the list of them itself."""
    return {
        path.relative_to(folder).as_posix(): file_crc32(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / SUMS
    }


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    lock = FileLock(target.with_name(target.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another process is preparing {target.name}; waiting for it", file=sys.stderr)
        lock.acquire()  # the system frees the lock of a process that dies, so this cannot hang on a corpse
    try:
        yield
    finally:
        lock.release()


@contextmanager
def storage_errors(folder: Path, variable: str = "KVBENCH_CACHE") -> Iterator[None]:
    """Turn the operating system's complaints about a cache folder into one line; ``variable`` moves it elsewhere."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own error in OSError's clothes, not the storage's
            raise
        reason = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "cannot be written"
        raise FetchError(
            f"cache folder {folder} {reason} ({error.strerror}); free some space or point {variable} to another folder"
        ) from error
