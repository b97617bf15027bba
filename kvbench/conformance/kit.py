"""The conformance kit: what every compressor must do, checked on a tiny random model in seconds.

``kvbench validate SPEC`` prints the verdicts; plug-ins take them into their own tests with
:func:`kvbench.testing.conformance`.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.compressor import parse
from kvbench.conformance.bench import Bench
from kvbench.conformance.checks import CHECKS, ViolationError
from kvbench.errors import KvbenchError


@dataclass(frozen=True)
class Check:
    """One verdict: ``detail`` says what was seen, or what was wrong."""

    name: str
    passed: bool
    detail: str


def validate(spec: str) -> list[Check]:
    """Run every check on ``spec``.

    Raises:
        KvbenchError: the spec does not parse, or names a baseline.
    """
    bench = prepare(spec)
    return [run_check(name, bench) for name in CHECKS]


def prepare(spec: str) -> Bench:
    """The bench for :func:`run_check`; raises as :func:`validate` does."""
    compressor = parse(spec)
    if compressor.baseline:
        raise KvbenchError(f"{spec} is a baseline: there is nothing to validate")
    return Bench.of(compressor)


def run_check(name: str, bench: Bench) -> Check:
    """The verdict of one of :data:`CHECKS`."""
    try:
        return Check(name, True, CHECKS[name](bench))
    except ViolationError as violation:
        return Check(name, False, str(violation))
    except Exception as error:  # a plug-in may do anything; it is reported, and the next check runs
        return Check(name, False, f"{type(error).__name__}: {error}")
