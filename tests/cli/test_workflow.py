"""The workflow file for GitHub: its commands exist as they are written, and so do the files that it names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvbench.cli.main import app

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github/workflows/kvbench.yml").read_text())["jobs"]


def commands(job: dict[str, Any]) -> Iterator[list[str]]:
    for step in job["steps"]:
        for line in step.get("run", "").splitlines():
            yield shlex.split(line)


def test_every_command_of_kvbench_can_be_read(jobs):
    lines = [command for job in jobs.values() for command in commands(job) if command[0] == "kvbench"]
    assert [line[1] for line in lines] == ["run", "gate", "report", "gate-times"]
    for line in lines:
        function, bound, _ = app.parse_args(line[1:], exit_on_error=False, print_error=False)
        assert function.__name__ == line[1].replace("-", "_") and bound.arguments


def test_files_that_it_names_exist(jobs):
    text = (ROOT / ".github/workflows/kvbench.yml").read_text()
    named = re.findall(r"'([\w./-]+\.(?:txt|toml))'", text) + re.findall(r"--baseline (\S+)", text)
    assert len(named) == 3 and all((ROOT / path).is_file() for path in named)


def test_what_failed_still_leaves_its_report(jobs):
    after_the_gate = [step for step in jobs["gate"]["steps"] if step.get("if", "").startswith("always()")]
    assert len(after_the_gate) == 3
