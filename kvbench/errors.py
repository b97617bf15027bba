"""What can go wrong, in words for the person at the terminal.

Every error that a user can cause is a :class:`KvbenchError`: one line that says what was wrong, what exists and
what to do. The command line prints that line and exits with ``exit_code``; nothing else is shown.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_REGRESSION = 1
EXIT_USAGE = 2
EXIT_UNDECIDED = 3
EXIT_SOME_FAILED = 4
EXIT_INTERRUPTED = 130


class KvbenchError(Exception):
    """Base of all errors that are the input's fault, not the program's. Exit code 2."""

    exit_code = EXIT_USAGE


class UnsupportedModelError(KvbenchError):
    """The model cannot carry a compressed cache; the message says why, and ``reason`` in a few words, for lists."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class FetchError(KvbenchError):
    """A model or text could not be fetched, verified or stored."""


class PluginError(KvbenchError):
    """A compressor of another package broke in its own code; the message names it, the cause has its traceback."""


class UndecidedError(KvbenchError):
    """A comparison that cannot be decided: baseline missing, corrupt or incomparable, nothing measured. Exit code 3."""

    exit_code = EXIT_UNDECIDED


def unknown(kind: str, name: str, known: Iterable[str]) -> KvbenchError:
    """The error for a name that does not exist: lists what does, and the nearest match first.

    >>> str(unknown("compressor", "pcaa", ["pca", "palu"]))
    "unknown compressor 'pcaa'; did you mean 'pca'? known: palu, pca"
    """
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return KvbenchError(f"unknown {kind} {name!r}{hint} known: {', '.join(options) or 'none'}")
