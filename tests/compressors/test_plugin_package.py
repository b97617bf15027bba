"""A compressor in a package of its own, really installed: found, validated, run; and what broken ones look like."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from kept_kernels import cache_with_kernels

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "tests" / "plugin"
SUITE = """
name = "tiny"
models = ["random:llama"]
compressors = ["none", "halves", "halves+int:bits=4", "at-fit", "in-encode", "wrong-shapes", "int:bits=4"]
[[workload]]
name = "w"
[workload.quality]
text = "pydoc"
calibration_text = "pydoc"
documents = 1
length = 160
prefix = 120
"""
BROKEN = '''
from dataclasses import dataclass, replace
from kvbench.compressors.part import Part
from kvbench.codecs.quantizers.base import Passthrough

class Loud(Passthrough):
    def encode(self, latents):
        raise ZeroDivisionError("one over\\nnothing")

class Short(Passthrough):
    def decode(self, stored):
        return stored["latent"][..., :-1]

@dataclass(frozen=True)
class AtFit(Part):
    """Raises while it is fitted."""
    name, family, roles = "at-fit", "broken", ("quantizer",)
    def apply(self, draft):
        raise RuntimeError("the moon is\\nin the wrong place")

@dataclass(frozen=True)
class InEncode(Part):
    """Raises when it meets a tensor."""
    name, family, roles, quantizer = "in-encode", "broken", ("quantizer",), Loud
    def apply(self, draft):
        for layer in draft:
            for side in layer.sides:
                side.quantizer = type(self).quantizer(draft.geometry.dtype, 8)

@dataclass(frozen=True)
class WrongShapes(InEncode):
    """Gives back fewer channels than it got."""
    name, quantizer = "wrong-shapes", Short

@dataclass(frozen=True)
class AtParse(AtFit):
    """Raises on its settings."""
    name = "at-parse"
    def __post_init__(self):
        raise TypeError("no settings please")
'''
POINTS = {"at-fit": "AtFit", "in-encode": "InEncode", "wrong-shapes": "WrongShapes", "at-parse": "AtParse"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example package, installed by pip, and a package of broken compressors."""
    source, site = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    shutil.copytree(PLUGIN, source)  # a build leaves files in its folder
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (site / "kvbench_broken.py").write_text(BROKEN)
    (site / "kvbench_unimportable.py").write_text("import kvbench_halves\nraise OSError('no such luck')\n")
    points = {name: f"kvbench_broken:{cls}" for name, cls in POINTS.items()} | {"at-import": "kvbench_unimportable:X"}
    info = site / "kvbench_broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kvbench-broken\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[kvbench.compressors]", *lines, ""]))
    return site


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of its own, but for the compiled kernels, which take a minute."""
    folder = tmp_path_factory.mktemp("cache")
    cache_with_kernels(folder)
    return folder


def child(site: Path, cache: Path, *command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a Python module in a process that has the packages of ``site``; ``code`` is how it must end."""
    paths = os.pathsep.join([str(site), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths, "KVBENCH_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=environment,
        cwd=cache,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


class Told(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


LIST, VALIDATE = "ls compressors --json", "validate halves --json"
RUN = "run --suite tiny.toml --threads 1 --json"
ALONE = {
    "generate Hi --model random:llama --compressor at-fit": "does not fit: RuntimeError: the moon is in the",
    "run --model random:llama --compressor at-import": "does not load: OSError: no such luck",
    "show at-parse:": "refuses 'at-parse:': TypeError: no settings please",
}
ONE_BY_ONE = """
import sys
from kvbench.cli.main import main
for line in sys.argv[1:]:
    try:
        main(line.split(" "))
    except SystemExit as ended:
        for stream in (sys.stdout, sys.stderr):
            print(f"@@ {ended.code}", file=stream, flush=True)
"""


@pytest.fixture(scope="module")
def told(site: Path, cache: Path) -> dict[str, Told]:
    """Every command's output: one process, since what takes ten seconds is its start."""
    (cache / "one_by_one.py").write_text(ONE_BY_ONE)
    (cache / "tiny.toml").write_text(SUITE)
    lines = (LIST, VALIDATE, RUN, *ALONE)
    done = child(site, cache, "one_by_one", *lines)
    out, err = (re.split(r"@@ (\d+)\n", stream) for stream in (done.stdout, done.stderr))
    ended = zip(lines, map(int, out[1::2]), out[::2], err[::2], strict=False)
    return {line: Told(code, printed, said) for line, code, printed, said in ended}


def test_it_is_listed_beside_broken_ones(told: dict[str, Told]) -> None:
    rows = {row["name"]: row for row in json.loads(told[LIST].out)}
    assert rows["halves"] == rows["halves"] | {"family": "low rank", "brings": "transform", "needs": ""}
    assert rows["at-import"]["family"] == "broken"
    assert rows["at-import"]["brings"] == (
        "compressor plug-in 'at-import' (kvbench_unimportable:X) does not load: OSError: no such luck"
    )
    assert {"pca", *POINTS} <= set(rows)


def test_it_is_validated(told: dict[str, Told]) -> None:
    checks = json.loads(told[VALIDATE].out)["checks"]
    assert told[VALIDATE].code == 0 and len(checks) > 8 and all(check["passed"] for check in checks)


def test_its_own_tests_run_the_conformance_kit(site: Path, cache: Path) -> None:
    shutil.copytree(PLUGIN / "tests", cache / "tests")  # out of reach of kvbench's own settings of pytest
    quick = "round_trip or bytes or canary or detach"  # all of them were just validated
    told = child(site, cache, "pytest", "tests", "-v", "-k", quick, "-p", "no:cacheprovider").stdout
    assert told.count("PASSED") == 4 and "test_conforms[halves+int:bits=4-canary] PASSED" in told


def test_a_run_goes_on_after_broken_ones(told: dict[str, Told]) -> None:
    code, printed, said = told[RUN]
    assert code == 4
    records = {record["trial"]["compressor"]: record for record in map(json.loads, printed.splitlines())}
    good = ("none", "halves", "halves+int:bits=4", "int:bits=4")
    assert all(records[spec]["status"] == "ok" and records[spec]["quality"]["tokens"] for spec in good)
    reasons = {
        "at-fit": "compressor plug-in 'at-fit' does not fit: RuntimeError: the moon is in the wrong place",
        "in-encode": "compressor plug-in 'in-encode' fails on a block of zeros at layer 0: ZeroDivisionError: one over "
        "nothing",
        "wrong-shapes": "compressor plug-in 'wrong-shapes': keys of layer 0 come back as (1, 2, 8, 15) and not as "
        "(1, 2, 8, 16) (batch, kv heads, tokens, width)",
    }
    for spec, reason in reasons.items():
        failure = records[spec]["failure"]
        assert (records[spec]["status"], failure["message"]) == ("failed", reason)
        assert "kvbench_broken.py" in failure["traceback"] or spec == "wrong-shapes", "its author needs the place"
        assert f"failed random:llama | {spec} | w: {reason}" in said


@pytest.mark.parametrize(("line", "reason"), ALONE.items())
def test_alone_a_broken_one_is_one_line(told: dict[str, Told], line: str, reason: str) -> None:
    code, printed, said = told[line]
    assert (code, printed) == (2, "") and reason in said and len(said.splitlines()) == 1


def test_the_readme_shows_this_very_class() -> None:
    code = (PLUGIN / "kvbench_halves.py").read_text().partition("@dataclass")[2]
    code = code.replace('        """One transform for each side of every layer."""\n', "")
    assert f"@dataclass{code}" in (ROOT / "README.md").read_text()
