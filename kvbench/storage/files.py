"""Files that survive a crash: replaced whole, or grown by one line at a time."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Give the file this content in one step: readers see the old or the new, never a part. Raises OSError."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes it private; results are meant to be shared
        os.replace(temporary, path)  # noqa: PTH105 (the same call, but it reads as what it is)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    sync_folder(path.parent)


def append_bytes(path: Path, data: bytes) -> None:
    """Append in a single write and wait for the disk. Raises OSError, also when the disk took only a part."""
    existed = path.exists()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(handle, data)
        if written != len(data):
            raise OSError(f"{path}: only {written} of {len(data)} bytes could be written; is the disk full?")
        os.fsync(handle)
    finally:
        os.close(handle)
    if not existed:
        sync_folder(path.parent)


def truncate_file(path: Path, length: int) -> None:
    """Cut the file to this many bytes and wait for the disk."""
    with path.open("r+b") as file:
        file.truncate(length)
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make new names in the folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
