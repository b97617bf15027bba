"""What a process says of what it does: a file of lines, three values of a stage each, which another process reads."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvbench.measure.bench import Report

STAGES = "stages.jsonl"
"""In the folder that the two share."""


@contextmanager
def written_stages(folder: Path) -> Iterator[Report]:
    """What to call with every stage, so that :class:`Stages` of the same folder read it."""
    with (folder / STAGES).open("a", encoding="utf-8", buffering=1) as stages:

        def stage(*values: Any) -> None:
            stages.write(json.dumps(values) + "\n")

        yield stage


class Stages:
    """The stages that a process writes into ``folder``: passed on to ``heard``, and missed when they stop."""

    def __init__(self, folder: Path, heard: Report, stall_s: float) -> None:
        self._path, self._heard, self._stall_s = folder / STAGES, heard, stall_s
        self._read, self._last = 0, time.monotonic()

    def read(self) -> None:
        """Pass on what is new.

        Raises:
            TimeoutError: nothing has been for ``stall_s``.
        """
        said = self._path.read_bytes()[self._read :] if self._path.exists() else b""
        whole = said[: said.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._heard(*json.loads(line))
        now = time.monotonic()
        if whole:
            self._read, self._last = self._read + len(whole), now
        elif now - self._last > self._stall_s:
            raise TimeoutError(f"said nothing for {self._stall_s:g} s")
