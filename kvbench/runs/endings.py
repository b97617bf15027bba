"""How a trial ended that has no result: its status, and the failure that its record holds."""

from __future__ import annotations

import traceback

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
    trace = None if known else "".join(traceback.format_exception(error))
    return Failure(type=type(error).__name__, message=str(error) or type(error).__name__, traceback=trace)


def tells_of_memory(text: str) -> bool:
    """Whether a message says that memory was too small."""
    return any(sign in text for sign in OUT_OF_MEMORY)
