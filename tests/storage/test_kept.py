"""Tensors kept on disk: computed once per key, whole or absent, within their budget."""

import os
from pathlib import Path

import pytest
import torch

from kvbench.errors import KvbenchError
from kvbench.storage.kept import FOLDER, Contents, kept


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    monkeypatch.delenv("KVBENCH_KEPT_GIB", raising=False)
    return tmp_path / FOLDER


class Maker:
    """Counts how often it is asked."""

    def __init__(self, value: float = 1.0, size: int = 8) -> None:
        self.calls, self.value, self.size = 0, value, size

    def __call__(self) -> Contents:
        self.calls += 1
        return {"x": torch.full((self.size,), self.value)}, {"note": "n"}


def test_made_once_per_key():
    first, other = Maker(1.0), Maker(2.0)
    for _ in range(3):
        tensors, texts = kept(["a", 1], first)
        assert torch.equal(tensors["x"], torch.ones(8)) and texts["note"] == "n"
    assert kept(["a", 2], other)[0]["x"][0] == 2.0
    assert first.calls == 1 and other.calls == 1


def test_a_damaged_entry_is_made_again(cache: Path):
    maker = Maker()
    kept(["a"], maker)
    [file] = cache.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    assert torch.equal(kept(["a"], maker)[0]["x"], torch.ones(8)) and maker.calls == 2
    kept(["a"], maker)
    assert maker.calls == 2


def test_the_entry_used_longest_ago_makes_room(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVBENCH_KEPT_GIB", str(2.5 * 4096 / 2**30))
    makers = {name: Maker(size=1000) for name in "abc"}
    for name in ("a", "b", "a", "c"):
        kept([name], makers[name])
        for age, path in enumerate(sorted(cache.iterdir(), key=lambda path: -path.stat().st_mtime)):
            stamp = path.stat().st_mtime - age  # clocks of file systems are coarse
            os.utime(path, (stamp, stamp))
    kept(["a"], makers["a"])
    kept(["b"], makers["b"])
    assert [makers[name].calls for name in "abc"] == [1, 2, 1]


@pytest.mark.parametrize("gib", ["0", "0.000001"])
def test_nothing_is_kept_beyond_the_budget(gib: str, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVBENCH_KEPT_GIB", gib)
    maker = Maker(size=100_000)
    kept(["a"], maker)
    kept(["a"], maker)
    assert maker.calls == 2 and not list(cache.rglob("*.safetensors"))
    if gib == "0":  # not even texts without tensors
        assert kept(["b"], lambda: ({}, {"spec": "first"})) == ({}, {"spec": "first"})
        assert kept(["b"], lambda: ({}, {"spec": "second"})) == ({}, {"spec": "second"})


def test_a_budget_that_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVBENCH_KEPT_GIB", "much")
    with pytest.raises(KvbenchError, match="KVBENCH_KEPT_GIB"):
        kept(["a"], Maker())
