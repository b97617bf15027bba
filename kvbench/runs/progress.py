"""What a person sees while trials run: one bar over the trials with an estimate, and the stage at hand.

Everything goes to stderr, so that ``--json`` has stdout to itself; without a terminal it falls back to plain lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from kvbench.runs.records import Record
from kvbench.runs.trials import Trial

BAR = 20
"""Characters of a bar: specs are long, terminals are not."""


class RunProgress:
    """Listener of :class:`kvbench.runs.runner.Runner`; a context manager around the run."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=quiet or not console.is_terminal,
            speed_estimate_period=3600,
        )
        self._task: TaskID | None = None
        self._spec = ""
        self._start = 0.0
        self._ended = self._total = 0

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def planned(self, trials: Sequence[Trial], finished: int) -> None:
        """Draw the bar; finished trials of an earlier run count as done."""
        self._ended, self._total = finished, len(trials)
        self._task = self._bar.add_task("trials", total=len(trials), completed=finished)
        self._bar.advance(self._task, 0)  # starts the clock, so that one trial is enough for an estimate
        if finished:
            self._say(f"{finished} of {len(trials)} trials are already done")

    def stage(self, what: str, done: int, total: int) -> None:
        """Show what is going on inside the trial."""
        counted = f" {done}/{total}" if total > 1 else ""
        if self._task is not None:
            self._bar.update(self._task, description=f"{self._spec}: {what}{counted}")
        elif total <= 1 and not self._bar.disable:
            self._say(what)

    def started(self, trial: Trial) -> None:
        """A new trial."""
        self._spec, self._start = trial.compressor, time.monotonic()

    def ended(self, record: Record) -> None:
        """One line per trial where there is no bar, and always for failures."""
        self._ended += 1
        if self._task is not None:
            self._bar.advance(self._task)
        line = f"[{self._ended}/{self._total}] {record.status:6} {record.trial.key}"
        if record.failure is not None:
            self._say(f"{line}: {' '.join(record.failure.message.split())}")
        elif not self._console.is_terminal:
            self._say(f"{line} ({time.monotonic() - self._start:.0f} s)")

    def _say(self, line: str) -> None:
        """Messages may hold brackets, and a wrapped line cannot be searched for."""
        if not self._quiet:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def counted(console: Console, title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for one long step; yields the callback that moves it, and stays invisible if nothing is ever counted."""
    columns = (TextColumn("{task.description}"), BarColumn(BAR), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task: TaskID | None = None

        def report(what: str, done: int, total: int) -> None:
            nonlocal task
            task = bar.add_task(title, total=total) if task is None else task
            bar.update(task, completed=done, total=total)

        yield report
