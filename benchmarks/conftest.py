"""Sizes, and what every result says about the machine."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from kvbench.hardware.bandwidth import Bandwidth, measure_bandwidth
from kvbench.hardware.environment import cpu_model, git_state, package_versions, usable_cores
from kvbench.kernels.choice import kernels_for, warm_up

CPU = torch.device("cpu")
LONGEST = 3600
"""Seconds that one benchmark may take with everything it prepares."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--quick`` keeps the whole folder below ten minutes on 2 cores; ``--tiny`` only shows that everything runs."""
    parser.addoption("--quick", action="store_true", help="the sizes that targets are stated for, few rounds")
    parser.addoption("--tiny", action="store_true", help="shapes too small to mean anything: does it run?")


def size_of(config: pytest.Config) -> str:
    """``tiny``, ``quick`` or ``full``."""
    return "tiny" if config.getoption("--tiny") else "quick" if config.getoption("--quick") else "full"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module's ``CASES`` by size become the parameter ``case``, set up once for all arms."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", metafunc.module.CASES[size_of(metafunc.config)], ids=str, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first arm of a case waits for the whole race."""
    for item in items:
        item.add_marker(pytest.mark.timeout(LONGEST))


@cache
def machine_bandwidth() -> Bandwidth:
    """Measured once."""
    return measure_bandwidth()


@pytest.fixture(scope="session")
def bandwidth() -> Bandwidth:
    """Bytes per second that this machine reads and copies."""
    return machine_bandwidth()


@pytest.fixture(scope="session", autouse=True)
def _kernels() -> None:
    """No timing contains a compiler."""
    warm_up(CPU)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Beside what pytest-benchmark knows: processor, threads, versions, commit, bandwidth, kernels."""
    commit, dirty = git_state(Path(__file__).parents[1])
    kernels, speed = kernels_for(CPU), machine_bandwidth()
    machine_info["kvbench"] = {
        "size": size_of(config),
        "processor": cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "packages": package_versions(),
        "commit": commit,
        "changed": dirty,
        "kernels": "none" if kernels is None else kernels.title,
        "read_bandwidth": speed.read,
        "copy_bandwidth": speed.copy,
    }
