"""Compiled kernels are kept by the content of their source, whichever module is imported first."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from numba.core.ccallback import CFunc
from numba.core.dispatcher import Dispatcher

from kvbench.kernels import cpu
from kvbench.storage.kernel_cache import cache_folder

SMALL = {
    "__init__.py": """
from pathlib import Path
from kvbench.storage.kernel_cache import kernel_cache
with kernel_cache(Path(__file__).parent):
    from small import outer
""",
    "inner.py": """
from numba import njit
@njit(cache=True)
def inner():
    return 1
""",
    "outer.py": """
from numba import njit
from small.inner import inner
@njit(cache=True)
def outer():
    return inner()
""",
}
"""A package whose one kernel calls another's."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "below").mkdir(parents=True)
    (folder / "a.py").write_text("a = 1\n")
    (folder / "below" / "b.py").write_text("b = 1\n")
    return folder


@pytest.mark.parametrize("file", ["a.py", "below/b.py"])
def test_a_change_of_any_file_has_a_folder_of_its_own(
    file: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    before = cache_folder(source)
    assert before.parent == tmp_path / "kernels" and cache_folder(source) == before
    (source / file).write_text("changed = 1\n")
    assert cache_folder(source) != before


def test_a_folder_that_cannot_be_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="compiled in every process"):
        folder = cache_folder(source)
    assert folder.is_dir() and tmp_path not in folder.parents


def test_a_kernel_that_calls_a_changed_one_is_compiled_anew(tmp_path: Path) -> None:
    """numba itself watches only the file that a kernel stands in."""
    (tmp_path / "small").mkdir()
    for name, text in SMALL.items():
        (tmp_path / "small" / name).write_text(text)
    environment = os.environ | {"KVBENCH_CACHE": str(tmp_path / "cache")}
    command = [
        sys.executable,
        "-B",  # Python's own cache takes a file of the same size for the same within a second
        "-c",
        "import sys; sys.path.insert(0, '.'); from small.outer import outer; print(outer())",
    ]

    def result() -> str:
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert result() == "1"
    (tmp_path / "small" / "inner.py").write_text(SMALL["inner.py"].replace("return 1", "return 2"))
    assert result() == "2"


ALONE = """
from typing import NamedTuple
from kvbench.storage.kernel_cache import kernels_of
class Before(NamedTuple):
    x: int
@kernels_of(__file__)()
def value(of):
    return of.x
print(value(Before(3)))
"""


def test_what_was_kept_of_an_older_version_is_not_looked_at(tmp_path: Path) -> None:
    """numba itself fails on it where it names a class that is gone."""
    file = tmp_path / "alone.py"
    for text in (ALONE, ALONE.replace("Before", "After")):
        file.write_text(text)
        environment = os.environ | {"KVBENCH_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-c", "import sys; sys.path.insert(0, '.'); import alone"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.strip() == "3", done.stderr


def test_all_kernels_are_kept_by_the_source_of_all() -> None:
    modules = [import_module(each.name) for each in pkgutil.walk_packages(cpu.__path__, f"{cpu.__name__}.")]
    kernels = {each for module in modules for each in vars(module).values() if isinstance(each, Dispatcher | CFunc)}
    kept = {Path(each._cache.cache_path).parent for each in kernels if each._cache.cache_path}
    assert kept == {cache_folder(Path(cpu.__file__).parent, cpu.VARIANT)}, (
        "what the others inline is not kept by itself"
    )
