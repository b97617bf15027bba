"""The package's own tests: kvbench's conformance kit, a test case for every check of every spec."""

from __future__ import annotations

from collections.abc import Callable

from kvbench.testing import conformance


@conformance("halves+int:bits=4")
def test_conforms(check: Callable[[], None]) -> None:
    check()
