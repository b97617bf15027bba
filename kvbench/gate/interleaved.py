"""Two versions of kvbench run a suite in turns, each time in a fresh process."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from kvbench.errors import KvbenchError
from kvbench.gate.times import Round

Times = dict[str, float]
"""Time per token as a share of stock transformers' in the same turns, by the key of the trial."""


@dataclass(frozen=True)
class Version:
    """One version of kvbench: the folder that holds its package, or a Python that has it installed."""

    place: Path

    @property
    def python(self) -> str:
        """What runs it."""
        return str(self.place) if self.place.is_file() else sys.executable

    @property
    def environment(self) -> dict[str, str]:
        """Where a checkout comes before anything installed."""
        return dict(os.environ) if self.place.is_file() else os.environ | {"PYTHONPATH": str(self.place.resolve())}

    def check(self) -> None:
        """Refuse what is no version of kvbench.

        Raises:
            KvbenchError: another kvbench would run, or none.
        """
        if not self.place.is_file() and not (self.place / "kvbench" / "__init__.py").is_file():
            raise KvbenchError(f"{self.place} holds no package kvbench; name a checkout, or a Python that has it")
        command = [self.python, "-P", "-c", "import kvbench; print(kvbench.__file__)"]
        said = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if said.returncode:
            reason = (said.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise KvbenchError(f"{self.place} cannot import kvbench: {reason}")
        home = Path(said.stdout.strip()).resolve().parents[1]
        if not self.place.is_file() and home != self.place.resolve():
            raise KvbenchError(f"the kvbench of {home} would run instead of that of {self.place}")

    def times(self, suite: Path, threads: int) -> Times:
        """The time of every trial of ``suite`` that was measured, from a fresh process."""
        with TemporaryDirectory(prefix="kvbench-times-") as folder:
            command = [self.python, "-P", "-m", "kvbench", "run", "--suite", str(suite), "--out", folder]
            options = ["--threads", str(threads), "--json", "--quiet"]
            done = subprocess.run(
                [*command, *options], env=self.environment, capture_output=True, text=True, check=False
            )
        return _times(done.stdout)


def rounds(
    base: Version, head: Version, suite: Path, count: int, threads: int, report: Callable[[int], None]
) -> dict[str, list[Round]]:
    """Rounds of both sides by trial, those of which both sides were measured.

    Which side goes first is drawn anew every round, so that nothing periodic meets one of them. ``report`` is called
    with the number of finished rounds.
    """
    drawn = random.Random(0)
    by_key: dict[str, list[Round]] = {}
    for done in range(count):
        first_is_base = drawn.random() < 0.5
        sides = (base, head) if first_is_base else (head, base)
        first, second = (side.times(suite, threads) for side in sides)
        before, after = (first, second) if first_is_base else (second, first)
        for key in sorted({*before, *after}):
            both = [Round(before[key], after[key])] if key in before and key in after else []
            by_key.setdefault(key, []).extend(both)
        report(done + 1)
    return by_key


def _times(lines: str) -> Times:
    """Of the records of any version: a trial's key is made as :class:`kvbench.runs.trials.Trial` makes it."""
    times = {}
    for line in lines.splitlines():
        record = json.loads(line)
        trial, speed = record["trial"], record.get("speed")
        if record["status"] == "ok" and speed and speed.get("ratio_to_hf"):
            key = f"{trial['model']} | {trial['compressor']} | {trial['workload']['name']}"
            times[key] = 1 / speed["ratio_to_hf"]
    return times
