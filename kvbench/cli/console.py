"""Where the command line writes: results to stdout, everything else to stderr."""

from __future__ import annotations

import os
import sys

from rich.console import Console

PIPE_WIDTH = 120
"""Columns of tables that go to a file or a pipe, where ``COLUMNS`` does not say."""

# Names come from users: brackets in them are brackets, not markup.
out = Console(markup=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH)
err = Console(markup=False, stderr=True)


def say(line: str, style: str = "") -> None:
    """One line on stderr that stays one line, however narrow the terminal and whatever brackets are in it."""
    err.print(" ".join(line.splitlines()), style=style, highlight=False, markup=False, soft_wrap=True)
