"""Which models exist, and what a name that does not is answered."""

from pathlib import Path

import pytest

from kvbench.errors import KvbenchError
from kvbench.models import registry


def test_default_is_a_model_of_the_registry():
    assert registry.default() in registry.names()


@pytest.mark.parametrize("name", registry.names())
def test_every_entry_is_pinned(name: str):
    entry = registry.find(name)
    if entry.source == "wheel":
        assert len(entry.gguf_sha256) == 64
        assert all("==" in wheel.requirement and len(wheel.sha256) == 64 for wheel in entry.wheels)
    else:
        assert entry.source == "hub"
        assert entry.repo and len(entry.revision) == 40


def test_hub_id_finds_its_entry():
    assert registry.find("EleutherAI/pythia-160m").name == "pythia-160m"


def test_gemma_needs_its_terms_accepted():
    assert registry.find("gemma-3-270m-q4_k_m").accept == "gemma"


def test_random_model_is_found_by_family():
    entry = registry.find("random:qwen3?layers=2")
    assert (entry.source, entry.family) == ("random", "qwen3")


def test_unknown_name_lists_what_exists():
    with pytest.raises(KvbenchError, match=r"unknown model 'gpt3'; did you mean 'gpt2'\?.*random:<family>"):
        registry.find("gpt3")


def test_folder_is_found_by_path(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    entry = registry.find(str(tmp_path))
    assert (entry.source, entry.path) == ("folder", tmp_path)


def test_folder_without_config_is_refused(tmp_path: Path):
    with pytest.raises(KvbenchError, match=r"has no config\.json"):
        registry.find(str(tmp_path))
