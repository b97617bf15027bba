"""The command line: every verb is a few calls into the floors below, imported when it runs."""

from __future__ import annotations

import os
import shlex
import signal
import sys

from cyclopts import App, CycloptsError, Parameter

from kvbench.cli.console import say
from kvbench.cli.convert import convert
from kvbench.cli.doctor import doctor
from kvbench.cli.fit import calibrate, fit
from kvbench.cli.gate_times import gate_times
from kvbench.cli.generate import generate
from kvbench.cli.heal import heal
from kvbench.cli.history import history
from kvbench.cli.judge import compare, gate
from kvbench.cli.lm_eval import lm_eval
from kvbench.cli.ls import ls
from kvbench.cli.project import project
from kvbench.cli.records import merge, records
from kvbench.cli.report import leaderboard, report
from kvbench.cli.run import run
from kvbench.cli.show import show
from kvbench.cli.sweep import sweep, trial
from kvbench.cli.validate import validate
from kvbench.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, KvbenchError


def _version() -> str:
    from kvbench.hardware.environment import kvbench_version

    return kvbench_version()


def _shown_default(value: object) -> str | None:
    return None if value is None or value is False else str(value)


app = App(
    name="kvbench",
    help="Measure KV-cache compression on open models: memory, speed and accuracy from one real compressed cache.",
    help_format="plaintext",  # Markdown would swallow <family>
    help_epilogue="Start with: kvbench run --suite quick. What can be compared: kvbench ls compressors.",
    version=_version,
    default_parameter=Parameter(negative="", show_default=_shown_default),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
VERBS = (
    *(run, sweep, trial, gate, gate_times, history, compare, report, leaderboard, records, merge, ls, show),
    *(calibrate, fit, heal, convert, generate, lm_eval, validate, project, doctor),
)
for verb in VERBS:
    app.command(verb)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs a verb, turns user errors into one line on stderr and the exit code that belongs to them."""
    given = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice is for people who write model code
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that processes and folders do not stay
    sys.exit(_exit_code(given))


def _exit_code(given: list[str]) -> int:
    try:
        _refuse_empty_values(given)
        code = app(given, exit_on_error=False, print_error=False)
        sys.stdout.flush()  # a reader that went away is noticed here and not when Python shuts down
    except KvbenchError as error:
        return _refuse(str(error), error.exit_code)
    except CycloptsError as error:
        return _refuse(f"{error} Help: {' '.join(['kvbench', *(error.command_chain or ())])} --help", EXIT_USAGE)
    except KeyboardInterrupt:
        resume = f"; what is finished is kept, resume with: {shlex.join(['kvbench', *given])}"
        say("interrupted" + (resume if given[:1] in (["run"], ["sweep"], ["trial"], ["fit"], ["heal"]) else ""))
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except RecursionError:
        return _refuse("a file that was read is nested too deeply to be one of kvbench's", EXIT_USAGE)
    except OSError as error:  # full disks, folders that cannot be written: the machine's fault, not the program's
        return _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error), EXIT_USAGE)
    return code if isinstance(code, int) else EXIT_OK


def _refuse_empty_values(given: list[str]) -> None:
    """An empty value is a variable that was not set, and never what was meant."""
    for option, value in zip(given, [*given, "-"][1:], strict=True):
        name, equals, attached = option.partition("=")
        if name.startswith("--") and (not value if not equals else not attached):
            raise KvbenchError(f"{name} is given without a value")


def _refuse(reason: str, code: int) -> int:
    say(f"kvbench: {reason}", "bold red")
    return code
