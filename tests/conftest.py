"""What many tests share: the default model, loaded once a session."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch comes: threads of several processes would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from kvbench.errors import FetchError

if TYPE_CHECKING:
    from kvbench.models.loading import LoadedModel


collect_ignore = ["plugin"]
"""A package of its own: a test installs it and runs its tests."""


LONGEST = (
    "test_task_bench.py",
    "test_plain_cpu.py",
    "test_triton_kernels.py",
    "test_plugin_package.py",
    "test_ray_cluster.py",
    "test_benchmarks_run.py",
)
"""Files that take a minute for few tests: begun first, so that no process is alone with one at the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many trials a Ray cluster gets: few unless somebody wants to know."""
    parser.addoption("--ray-trials", type=int, default=3, help="trials that test_ray_cluster.py compares (default 3)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; ``--no-loadscope-reorder`` keeps that order among processes."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """The default model in fp32. Its tests are skipped where it cannot be fetched, never in continuous integration."""
    from kvbench.models.loading import load  # not above: most tests need no torch

    try:
        return load("smollm2-135m-instruct-q4_1")
    except FetchError as error:
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(f"the default model is needed in continuous integration: {error}")
        pytest.skip(f"NOT TESTED on the default model: {error}")
