"""The fixtures for other projects, in a small project of another's: it fails when its compressor gets worse."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from kept_kernels import cache_with_kernels

ROOT = Path(__file__).parents[1]
COMPRESSOR = """
import os
from dataclasses import dataclass
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.compressors.part import Part

@dataclass(frozen=True)
class Mine(Part):
    '''Whole numbers of as many bits as the environment says: what a change of code would do.'''
    name, family, roles = "mine", "quantization", ("quantizer",)
    def apply(self, draft):
        for layer in draft:
            for side in layer.sides:
                side.quantizer = IntegerQuantizer(int(os.environ["MINE_BITS"]), side.head_dim)
"""
TESTS = """
def test_gate(kvbench_gate):
    kvbench_gate("mine:recent=0,block=8")

def test_limits(kvbench_measure):
    measured = kvbench_measure("mine:recent=0,block=8").require("bits < 8 and kld < 0.0005")
    assert measured.record.quality.tokens and measured.values["bits"] > 4

def test_a_misspelt_name(kvbench_measure):
    kvbench_measure("mien")
"""
SESSIONS = """
import os, sys
import pytest
for number, (bits, *options) in enumerate([("4",), ("4", "--kvbench-update"), ("4",), ("2",)]):
    os.environ["MINE_BITS"] = bits
    print(f"@@ session {number}")
    pytest.main([*options, "-q", "-p", "kvbench.pytest_plugin", "-p", "no:cacheprovider", "-p", "no:xdist", "tests"])
"""


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What pytest prints in four sessions: no baseline, one is made, nothing has changed, a worse compressor."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "mine.py").write_text(COMPRESSOR)
    info = folder / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kvbench.compressors]\nmine = mine:Mine\n")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_mine.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nkvbench_baseline = tests/accepted.json\n")
    paths = os.pathsep.join([str(folder), str(ROOT)])
    cache = cache_with_kernels(folder / "cache")
    environment = os.environ | {"PYTHONPATH": paths, "KVBENCH_CACHE": cache, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", SESSIONS]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, *told = done.stdout.split("@@ session ")
    return told


def test_without_a_baseline_it_says_how_to_make_one(sessions: list[str]):
    assert "no baseline at" in sessions[0] and "2 failed, 1 passed" in sessions[0]
    assert "unknown compressor 'mien'; did you mean 'mine'" in sessions[0]


def test_made_and_kept(sessions: list[str]):
    for told in sessions[1:3]:
        assert "1 failed, 2 passed" in told and "test_a_misspelt_name" in told


def test_a_worse_compressor_fails(sessions: list[str]):
    assert "3 failed" in sessions[3]
    assert "kld_mean" in sessions[3] and "WORSE" in sessions[3] and "pytest --kvbench-update" in sessions[3]
    assert "not bits < 8 and kld < 0.0005: bits = " in sessions[3]


def test_pytest_is_told_of_it():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert import_module(points["kvbench"]).kvbench_gate


def test_nothing_heavy_is_imported_before_it_is_used():
    code = (
        "import sys, kvbench.pytest_plugin; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
