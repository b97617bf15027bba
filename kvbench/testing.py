"""For the tests of compressor packages: kvbench's conformance kit as test cases of pytest."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

from kvbench.conformance.bench import Bench
from kvbench.conformance.checks import CHECKS
from kvbench.conformance.kit import prepare, run_check

if TYPE_CHECKING:
    import pytest


def conformance(*specs: str) -> pytest.MarkDecorator:
    """Parametrize a test over every check on each of ``specs``; ``check()`` raises what was wrong.

    The same checks as ``kvbench validate``, each on a tiny random model, in seconds::

        @conformance("halves", "halves+int:bits=4")
        def test_conforms(check):
            check()
    """
    import pytest  # only tests need it

    cases = [
        pytest.param(partial(_run, spec, name), id=f"{spec}-{name.replace(' ', '_')}")
        for spec in specs
        for name in CHECKS
    ]
    return pytest.mark.parametrize("check", cases)


@lru_cache(maxsize=1)
def _bench(spec: str) -> Bench:
    return prepare(spec)


def _run(spec: str, name: str) -> None:
    verdict = run_check(name, _bench(spec))
    if not verdict.passed:
        raise AssertionError(f"{spec} fails {name!r}: {verdict.detail}")
