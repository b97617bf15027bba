"""A process that imports a module once and then works on one request after another, each in a fork of its own.

Importing torch and transformers takes seconds; a process that is started for each request would spend most of its time
with that. A fork starts from the imports and nothing else.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread
from typing import IO

import kvbench

FORKS = sys.platform == "linux"
"""Elsewhere a process works once and ends: libraries of macOS do not survive a fork, and Windows has none."""

WATCH_S = 0.1
"""Seconds between two looks at a process that works."""

START = "import sys; sys.path.append(sys.argv[1]); from {module} import main; main()"
"""Where kvbench lies comes last on the path, and the current folder not at all (-P): no file there is imported."""


class Worker:
    """Runs ``main()`` of ``module`` in a process of its own, started on the first request and ended with this one.

    ``main`` calls :func:`serve`. It may end after any request, or die: the next request starts it anew.
    ``environment`` is set on top of this process'.
    """

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self._module, self._added = module, dict(environment)
        self._process: subprocess.Popen[str] | None = None
        self._environment: dict[str, str] = {}
        self._stderr: IO[bytes] | None = None
        self._said_before = 0
        atexit.register(self.stop)

    def run(self, folder: Path, timeout_s: float, watch: Callable[[], None] = lambda: None) -> int:
        """The exit status of the work in ``folder``; negative for the signal that ended it.

        Args:
            watch: called a few times a second; what it raises ends the process and is passed on.

        Raises:
            TimeoutError: it took longer than ``timeout_s``; the process was ended.
        """
        process, answers = self._running(), list[str]()
        assert process.stdin is not None and process.stdout is not None
        reader = Thread(target=lambda line: answers.append(line()), args=(process.stdout.readline,), daemon=True)
        try:
            process.stdin.write(f"{folder}\n")
            process.stdin.flush()
            reader.start()
            deadline = time.monotonic() + timeout_s
            while not answers and (left := deadline - time.monotonic()) > 0:
                reader.join(min(WATCH_S, left))
                watch()
            answered = bool(answers)
        except BrokenPipeError:
            return process.wait()
        except BaseException:
            self.stop()
            raise
        if not answered:
            self.stop()
            raise TimeoutError
        return int(answers[0]) if answers[0] else process.wait()

    def errors(self) -> str:
        """What the process has written to its standard error since the last request began."""
        if self._stderr is None:
            return ""
        self._stderr.seek(self._said_before)
        return self._stderr.read().decode(errors="replace")

    def stop(self) -> None:
        """End the process and what it has started."""
        if self._process is not None:
            if hasattr(os, "killpg"):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        """The process; a new one where it has ended, or was started under another environment."""
        environment = os.environ | self._added
        if self._process is None or self._process.poll() is not None or self._environment != environment:
            self.stop()
            home = str(Path(kvbench.__file__).parents[1])
            self._said_before = 0
            self._stderr = TemporaryFile()  # noqa: SIM115 - it is the process' standard error, and goes when that does
            self._environment = environment
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", START.format(module=self._module), home],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which then ends that one
            )
        elif self._stderr is not None:
            self._said_before = os.fstat(self._stderr.fileno()).st_size
        return self._process


def serve(work: Callable[[Path], int]) -> None:
    """Work in every folder that is named on standard input, a line each; answer each with the exit status of ``work``.

    Where processes fork, each is worked in by a fork of this one, which must have started no threads.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        print(_forked(work, folder) if FORKS else work(folder), file=answers, flush=True)
        if not FORKS:
            return


def _forked(work: Callable[[Path], int], folder: Path) -> int:
    """The exit status of a fork that works; negative for the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = work(folder)
        except BaseException:
            traceback.print_exc()
        finally:  # nothing of the process that was forked goes on here
            sys.stderr.flush()
            os._exit(status)
    _end_with_who_asked(child)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _end_with_who_asked(child: int) -> None:
    """Wait for the fork, and kill it where the process at the other end of standard input dies first.

    It would work on for no one, beside the one that does the same work when a killed sweep is begun again.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):  # of kernels before 5.3
        ended = os.pidfd_open(child)
        either = select.poll()
        either.register(ended, select.POLLIN)
        either.register(sys.stdin.fileno(), 0)  # no event but that nobody can write to it any more
        if ended not in dict(either.poll()):
            os.kill(child, signal.SIGKILL)
        os.close(ended)
