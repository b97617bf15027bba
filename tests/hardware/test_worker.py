"""Processes that work for another: they end when it does, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from kvbench.hardware.worker import FORKS, Worker

WORK = """
import os, time
from kvbench.hardware.worker import serve
def work(folder):
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(0 if (folder / "short").exists() else 120)
    return 3
def main():
    serve(work)
"""
BOSS = """
from pathlib import Path
from kvbench.hardware.worker import Worker
Worker("some_work", {{"PYTHONPATH": {path!r}}}).run(Path({folder!r}), 100)
"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "some_work.py").write_text(WORK)
    return folder


def is_there(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.skipif(not FORKS, reason="work is done in no fork here")
def test_work_ends_when_who_asked_for_it_is_killed(modules: Path, tmp_path: Path):
    """A sweep ended by kill -9 left its trial measuring for hours, beside the same trial of the sweep begun again."""
    boss = subprocess.Popen([sys.executable, "-c", BOSS.format(path=str(modules), folder=str(tmp_path))])
    try:
        pid = int(waited(lambda: (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else ""))
    finally:
        boss.kill()
        boss.wait()
    assert waited(lambda: "" if is_there(pid) else "gone") == "gone"


def test_work_that_ends_is_answered_and_the_next_is_taken(modules: Path, tmp_path: Path):
    (tmp_path / "short").touch()
    worker = Worker("some_work", {"PYTHONPATH": str(modules)})
    assert [worker.run(tmp_path, 60) for _ in range(3)] == [3, 3, 3]
    worker.stop()


def waited(look: Callable[[], str], seconds: float = 30) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if seen := look():
            return seen
        time.sleep(0.05)
    raise AssertionError("nothing happened")
