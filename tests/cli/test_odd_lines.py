"""Command lines that nobody means, some hundreds of them: a line that says what is wrong, and the right exit code."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fp64 import one_thread
from kept_kernels import cache_with_kernels
from tiny_suite import SUITE
from whole_record import MEMORY, PROVENANCE, QUALITY, SPEED, TRIAL

from kvbench.cli.main import VERBS
from kvbench.gate.baseline import write_baseline
from kvbench.runs.jsonl import encode_line
from kvbench.runs.records import Record
from kvbench.runs.store import RunStore

__all__ = ["one_thread"]

TABLE = tomllib.loads(Path(__file__).with_name("odd_lines.toml").read_text("utf-8"))
LINES = [(line, told) for group in TABLE.values() for line, told in group.items()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the table describes, and ``cache`` beside it."""
    folder = tmp_path_factory.mktemp("odd") / "here"
    for name in ("empty", "damaged", "mixed", "measured", "nomodel"):
        (folder / name).mkdir(parents=True)
    record = Record.of(TRIAL, "ok", PROVENANCE, memory=MEMORY, quality=QUALITY, speed=SPEED)
    (folder / "measured" / "records.jsonl").write_bytes(encode_line(record))
    (folder / "damaged" / "records.jsonl").write_text("{}\n")
    older = Path(__file__).parents[1] / "runs" / "fixtures" / "records-v1.jsonl"
    (folder / "mixed" / "records.jsonl").write_bytes(older.read_bytes())
    RunStore(folder / "planned").plan([TRIAL], "other")
    write_baseline([record], folder / "baseline.json")
    files = {"text.txt": "words\n", "bad.toml": "name = ", "bad.json": "{", "list.json": "[]", "tiny.toml": SUITE}
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "binary").write_bytes(b"\xff\xfe\x00\n")
    (folder / "nomodel" / "config.json").write_text("{}")
    cache_with_kernels(folder.parent / "cache")
    return folder


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder as the current one; it must be left as it was found."""
    monkeypatch.setenv("KVBENCH_CACHE", str(workplace.parent / "cache"))
    monkeypatch.chdir(workplace)
    before = contents(workplace)
    yield
    assert contents(workplace) == before


def contents(folder: Path) -> dict[Path, bytes]:
    """All files with what is in them, and folders; locks come and go."""
    every = (path for path in folder.rglob("*") if path.name != ".lock")
    return {path: path.read_bytes() if path.is_file() else b"" for path in every}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("line", "told"), LINES, ids=[line for line, _ in LINES])
def test_it_is_refused_in_a_line(refuse: Callable[..., str], line: str, told: str | list) -> None:
    code, words = (2, told) if isinstance(told, str) else told
    assert words in refuse(*shlex.split(line), code=code)


def test_there_are_hundreds_and_some_of_every_verb() -> None:
    assert len({line for line, _ in LINES}) == len(LINES) >= 300
    first = {shlex.split(line)[0] for line, _ in LINES}
    assert {verb.__name__.replace("_", "-") for verb in VERBS} <= first
