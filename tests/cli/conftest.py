"""Fixtures of the command line's tests: a cache of their own, a model folder, and commands that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kept_kernels import cache_with_kernels

from kvbench.cli import main as cli
from kvbench.models.random_models import build, byte_tokenizer


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBENCH_CACHE", cache_with_kernels(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused with ``code``; the one line that it says."""

    def call(*arguments: object, code: int = 2) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert ended.value.code == code, captured.err
        assert captured.out == "" and "Traceback" not in captured.err
        (line,) = captured.err.splitlines()
        assert line.startswith("kvbench: ")
        return line.removeprefix("kvbench: ")

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as save_pretrained writes it."""
    build("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"
