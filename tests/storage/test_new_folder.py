"""Folders that people name: complete or absent."""

from pathlib import Path

import pytest

from kvbench.errors import KvbenchError
from kvbench.storage.new_folder import new_folder


def written(partial: Path) -> None:
    (partial / "a").write_text("1")


def test_it_appears_complete_and_alone(tmp_path: Path):
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "old").write_text("of a killed process")
    new_folder(tmp_path / "b", written)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["a"]


def test_an_empty_folder_is_filled_and_missing_parents_are_made(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "x" / "y"):
        new_folder(target, written)
        assert (target / "a").read_text() == "1"


def test_what_goes_wrong_leaves_nothing(tmp_path: Path):
    def broken(partial: Path) -> None:
        written(partial)
        raise ValueError

    with pytest.raises(ValueError):
        new_folder(tmp_path / "b", broken)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("0")
    (tmp_path / "file").write_text("0")
    with pytest.raises(KvbenchError, match="is not empty"):
        new_folder(tmp_path / "b", written)
    with pytest.raises(KvbenchError, match="is a file"):
        new_folder(tmp_path / "file", written)

    def meanwhile(partial: Path) -> None:
        written(partial)
        (tmp_path / "c").mkdir()
        written(tmp_path / "c")

    with pytest.raises(KvbenchError, match="is not empty"):
        new_folder(tmp_path / "c", meanwhile)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", "file"]
