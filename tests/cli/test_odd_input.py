"""Command lines and files that nobody writes on purpose: one line that says what to do, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fp64 import one_thread
from safetensors.torch import load_file, save_file
from tiny_suite import SUITE

from kvbench.calibration.store import calibrate
from kvbench.cli import main as cli
from kvbench.compressors.plan_file import open_plan
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import probe_geometry
from kvbench.models.loading import load
from kvbench.models.random_models import build, byte_tokenizer
from kvbench.storage.folders import build_folder, check_folder
from kvbench.texts.windows import windows

__all__ = ["one_thread"]

Refuse = Callable[..., str]
pytestmark = pytest.mark.usefixtures("own_cache")


def test_bytes_that_are_no_text(refuse: Refuse) -> None:
    assert "the prompt is no valid UTF-8 text" in refuse("generate", "\udcff\udcfe", "--model", "random:llama")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name = "tiny"', 'name = "../../escape"', "name: String should match pattern"),
        ('name = "tiny"', 'name = "/tmp/absolute"', "name: String should match pattern"),
        ('name = "tiny"', 'name = ""', "name: String should match pattern"),
        ('name = "w"', r'name = "a\nb"', "must be one line of text without '|'"),
        ('name = "tiny"', 'name = "tiny"\nseed = -1', "seed: Input should be greater than or equal to 0"),
        ('name = "tiny"', f'name = "tiny"\nseed = {2**63}', "seed: Input should be less than"),
        ('name = "tiny"', f"name = {'[' * 10_000}{']' * 10_000}", "nested too deeply"),
    ],
)
def test_suites(refuse: Refuse, tmp_path: Path, old: str, new: str, told: str) -> None:
    (tmp_path / "tiny.toml").write_text(SUITE.replace(old, new, 1))
    assert told in refuse("run", "--suite", tmp_path / "tiny.toml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "tiny.toml"]


def test_brackets_in_names_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.toml").write_text(SUITE.replace('name = "w"', 'name = "[/b] [red]"'))
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--suite", str(tmp_path / "tiny.toml")])
    assert ended.value.code == 0
    assert "[/b] [red]" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [["report", "empty"], ["compare", "empty", "empty"]])
def test_nothing_to_show(refuse: Refuse, tmp_path: Path, verb: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "no records at empty/records.jsonl" in refuse(*verb, code=3)
    (tmp_path / "empty" / "records.jsonl").touch()
    assert "empty holds no records; `kvbench run --out empty`" in refuse(*verb, code=3)
    assert len(list((tmp_path / "empty").iterdir())) == 1


def test_a_baseline_is_no_folder(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").touch()
    assert ". is a folder; name the file to write" in refuse("gate", ".", "--baseline", ".", "--update")


@pytest.mark.parametrize(
    ("key", "value"), [("num_attention_heads", "four"), ("num_attention_heads", 0), ("hidden_size", None)]
)
def test_configs(refuse: Refuse, folder: Path, key: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    assert f"cannot read the model in folder {folder}: " in refuse("run", "--model", folder, "--compressor", "none")


def test_a_config_nested_without_end(refuse: Refuse, folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 10_000 + "1" + "}" * 10_000)
    assert "cannot read the model in folder" in refuse("run", "--model", folder, "--compressor", "none")


def test_an_adapter_is_no_model(refuse: Refuse, folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert "holds an adapter; merge it" in refuse("run", "--model", folder, "--compressor", "none")


def test_a_tokenizer_of_another_model(refuse: Refuse, folder: Path) -> None:
    build("llama", vocab=300).save_pretrained(folder)
    config = json.loads((folder / "tokenizer.json").read_text())
    config["model"]["vocab"] |= {f"word{index}": 259 + index for index in range(60)}
    (folder / "tokenizer.json").write_text(json.dumps(config))
    assert "its tokenizer has 319 tokens, the model embeds 300" in refuse("run", "--model", folder)


@pytest.mark.parametrize("template", ["{{ messages.__class__.__mro__ }}", "{% for x in %}", "{{ 1 / 0 }}"])
def test_chat_templates(refuse: Refuse, folder: Path, template: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    assert "chat template cannot be rendered" in refuse("generate", "hi", "--chat", "--model", folder)


def test_a_changed_number_in_kept_statistics_is_seen(tmp_path: Path) -> None:
    loaded = load("random:llama")
    geometry, read = probe_geometry(loaded.model), windows("pydoc", "calibration", loaded.tokenizer, 64, 2)
    calibrate(loaded, geometry, read)
    (file,) = (tmp_path / "cache" / "calibration").glob("*/statistics.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(KvbenchError, match=r"statistics\.safetensors is not what was written there; delete"):
        calibrate(loaded, geometry, read)


def test_a_changed_number_in_a_plan_is_seen(tmp_path: Path) -> None:
    fit = "fit --model random:llama --method pca --target bits=24 --text pydoc --windows 2 --length 64 --tokens 256"
    with pytest.raises(SystemExit) as ended:
        cli.main([*fit.split(), "--save", "plan"])
    assert ended.value.code == 0
    (file,) = (tmp_path / "plan").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(KvbenchError, match="a number in it was changed"):
        open_plan(file).plan(probe_geometry(load("random:llama").model))


@pytest.mark.parametrize("damage", ["changed", "added", "removed", "unlisted"])
def test_a_built_folder_is_checked(tmp_path: Path, damage: str) -> None:
    def build_two(partial: Path) -> None:
        save_file({"a": torch.arange(5)}, partial / "a.safetensors")
        (partial / "b").write_text("b")

    folder = build_folder(tmp_path / "built", build_two)
    assert load_file(check_folder(folder) / "a.safetensors")["a"].tolist() == [0, 1, 2, 3, 4]
    if damage == "changed":
        (folder / "b").write_text("c")
    elif damage == "added":
        (folder / "c").write_text("c")
    elif damage == "removed":
        (folder / "b").unlink()
    else:
        (folder / "crc32.json").unlink()
    with pytest.raises(KvbenchError, match="delete"):
        check_folder(folder)
