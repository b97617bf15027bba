"""The gates against themselves: quiet where nothing changed, again and again, and loud on a slowdown put in on purpose.

    python benchmarks/gate_selftest.py values --runs 20                      # an hour
    python benchmarks/gate_selftest.py times --runs 20 --slowed-runs 5       # an hour or two; nothing else may run

``values`` measures the suite ``ci`` of this checkout anew in every run and gates it by the committed baseline. Run by
run the libraries below round as they would on another processor, and everything is fitted anew.
``times`` times this checkout against itself, and against a copy of it whose own decode steps take longer while stock
transformers', the control, stay as they are. Exit code 1 if a gate was loud on nothing or quiet on the slowdown.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from kvbench.storage.folders import cache_dir

ROOT = Path(__file__).resolve().parents[1]
SUITE = Path(__file__).with_suffix(".toml")
BASELINE = ROOT / "results" / "baselines" / "ci.json"

OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
ARITHMETIC: dict[str, dict[str, str]] = {
    "of this processor": {},
    "of torch without AVX-512": {"ATEN_CPU_CAPABILITY": "avx2"},
    "of torch without vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "of MKL for any processor": {"MKL_CBWR": "COMPATIBLE"},
    "of kernels without AVX-512": OLDER,
    "of all these": OLDER | {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE"},
}
"""Environments in which one processor computes as others do."""

OF_A_PROCESSOR = ("baselines", "calibration")
"""Folders of the cache that hold what was computed, not fetched."""

SLOWER = """

# Put in by benchmarks/gate_selftest.py.
import time as _time

_quick = Arm.forward


def _slow(self, *inputs, **options):
    start = _time.perf_counter()
    logits = _quick(self, *inputs, **options)
    if self.plan is not None:  # stock transformers is the control
        end = start + (1 + {share}) * (_time.perf_counter() - start)
        while _time.perf_counter() < end:
            pass
    return logits


Arm.forward = _slow
"""
"""Stands at the end of ``kvbench/measure/arms.py``: every step of an arm of kvbench's own takes ``share`` longer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a gate; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gate", choices=("values", "times"))
    parser.add_argument("--runs", type=int, default=20, help="of the same code")
    parser.add_argument("--slowed-runs", type=int, default=5, help="of slower code; each takes twice as long")
    parser.add_argument("--slowdown", type=float, default=0.15, help="share of a decode step that is added")
    parser.add_argument("--suite", default=str(SUITE), help="what is timed")
    parser.add_argument("--rounds", type=int, default=9, help="of either side, in every run")
    options = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="kvbench-selftest-") as scratch:
        if options.gate == "values":
            in_turns = list(islice(cycle(ARITHMETIC), options.runs))
            codes = [_told(f"arithmetic {name}", *values(Path(scratch), ARITHMETIC[name])) for name in in_turns]
            print(f"alarms on nothing: {sum(map(bool, codes))} of {len(codes)}")
            return int(any(codes))
        slow = slowed(Path(scratch) / "slow", options.slowdown)
        timing = options.suite, options.rounds
        same = [_told(f"same code, run {run + 1}", *times(ROOT, *timing)) for run in range(options.runs)]
        told = f"{options.slowdown:.0%} slower"
        found = [_told(f"{told}, run {run + 1}", *times(slow, *timing)) for run in range(options.slowed_runs)]
    print(f"alarms on nothing: {same.count(1)} of {len(same)}; slowdowns told: {found.count(1)} of {len(found)}")
    return int(same.count(1) > 0 or found.count(1) < len(found))


def values(scratch: Path, arithmetic: dict[str, str]) -> tuple[int, list[str]]:
    """The exit code of ``kvbench gate`` on a run with this ``arithmetic``, and the verdicts."""
    with TemporaryDirectory(dir=scratch) as folder:
        cache, results = Path(folder) / "cache", Path(folder) / "results"
        cache.mkdir()
        for each in cache_dir().glob("*"):
            if each.name not in OF_A_PROCESSOR:
                (cache / each.name).symlink_to(each, target_is_directory=each.is_dir())
        _kvbench("run", "--suite", "ci", "--out", results, "--quiet", **arithmetic, KVBENCH_CACHE=str(cache))
        code, printed = _kvbench("gate", results, "--baseline", BASELINE, "--json")
        return code, [row["verdict"] for row in json.loads(printed)["rows"]] if printed else []


def times(head: Path, suite: str, rounds: int) -> tuple[int, list[str]]:
    """The exit code of ``kvbench gate-times`` with this checkout as the base, and the verdicts."""
    sides = ("--base", ROOT, "--head", head)
    code, printed = _kvbench("gate-times", *sides, "--suite", suite, "--rounds", rounds, "--json")
    return code, [row["verdict"] for row in json.loads(printed)["rows"]] if printed else []


def slowed(folder: Path, share: float) -> Path:
    """A copy of this checkout's package in ``folder`` that decodes slower; the folder."""
    shutil.copytree(ROOT / "kvbench", folder / "kvbench", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "kvbench" / "measure" / "arms.py").open("a") as arms:
        arms.write(SLOWER.format(share=share))
    return folder


def _kvbench(*arguments: object, **environment: str) -> tuple[int, str]:
    """Exit code and output of a command of this checkout; what it says of itself goes to the terminal."""
    command = [sys.executable, "-m", "kvbench", *map(str, arguments)]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def _told(what: str, code: int, verdicts: list[str]) -> int:
    """Print how a run ended; its exit code."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(verdicts).items())
    print(f"{what}: exit code {code}, {counts or 'nothing judged'}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
