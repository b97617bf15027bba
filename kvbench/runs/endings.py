"""How a trial ended that has no result: its status, and the failure that its record holds."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from pathlib import Path

import kvbench
from kvbench.errors import KvbenchError, PluginError
from kvbench.runs.records import Failure, Status

OUT_OF_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "Unable to allocate",
    "MemoryError",
    "out of memory",
    "bad_alloc",
)
"""How torch's allocators, the system, numpy, Python, LLVM and C++ say it, also in the last words of a process."""


def status_of(error: Exception) -> Status:
    """Of a trial that ended in ``error``."""
    if isinstance(error, MemoryError) or tells_of_memory(str(error)):
        return "oom"
    return "timeout" if isinstance(error, TimeoutError) else "failed"


def failure_of(error: Exception) -> Failure:
    """What is written down of ``error``; with a traceback where it was not expected."""
    known = isinstance(error, KvbenchError | MemoryError | TimeoutError) and not isinstance(error, PluginError)
    trace = None if known else _traceback(error)
    return Failure(type=type(error).__name__, message=str(error) or type(error).__name__, traceback=trace)


def _traceback(error: Exception) -> str:
    """With files named from where Python finds them on: where that is on this machine concerns no reader of results."""
    text = "".join(traceback.format_exception(error))
    roots = {
        *sys.path,
        *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")),
        str(Path(kvbench.__file__).parents[1]),
    }
    for root in sorted(roots, key=len, reverse=True):
        if root.strip(os.sep):
            text = text.replace(f'File "{root.rstrip(os.sep)}{os.sep}', 'File "')
    return text


def tells_of_memory(text: str) -> bool:
    """Whether a message says that memory was too small."""
    return any(sign in text for sign in OUT_OF_MEMORY)
