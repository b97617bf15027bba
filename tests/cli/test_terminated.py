"""Batch systems and CI end a command by SIGTERM: it ends as by Ctrl-C, and nothing that it started goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from kept_kernels import cache_with_kernels
from tiny_suite import SUITE

from kvbench.runs.store import read_records

SPEED = """
[workload.speed]
prompt = 64
steps = 32
rounds = 200
"""
MINUTES = SUITE.replace("random:llama", "random:llama?context=8192") + SPEED


def test_what_a_sweep_has_started_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "minutes.toml").write_text(MINUTES)
    command = [sys.executable, "-m", "kvbench", "sweep", tmp_path / "minutes.toml", "--out", tmp_path / "r"]
    environment = os.environ | {"KVBENCH_CACHE": cache_with_kernels(tmp_path / "cache")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        started = when_it_measures(process.pid, tmp_path / "r")
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("interrupted; what is finished is kept, resume with: kvbench sweep ")
    assert psutil.wait_procs(started, timeout=10)[1] == []
    assert [record.status for record in read_records(tmp_path / "r")] == ["interrupted"]


def when_it_measures(command: int, folder: Path) -> list[psutil.Process]:
    """The processes that ``command`` has started once a trial into ``folder`` has one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (folder / "manifest.json").exists() and (started := psutil.Process(command).children(recursive=True)):
            return started
        time.sleep(0.05)
    raise AssertionError("no trial began in two minutes")
