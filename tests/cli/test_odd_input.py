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


RUN = ["run", "--model", "random:llama", "--compressor", "none"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ([*RUN, "--methods", "all"], "add --at, as in --at bits=2,3,4"),
        ([*RUN, "--exact", "float16"], "add --at, as in --at bits=2,3,4"),
        (["run", "--model", ""], "--model is given without a value"),
        (["run", "--model="], "--model is given without a value"),
        (["run", "--suite", ""], "--suite is given without a value"),
        (["run", "--out", ""], "--out is given without a value"),
        (["run", "--threads", "1.5"], "'1.5' is not a whole number"),
        (["run", "--threads", "٣"], "is not a whole number"),
        (["run", "--threads", "1_0"], "'1_0' is not a whole number"),
        (["run", "--threads", "9" * 30], "is not a whole number of at most nine digits"),
        ([*RUN, "--threads", "99999"], "threads must be 1 to 1024"),
        ([*RUN, "--device", "cpu:3"], "device 'cpu:3' cannot be used: write cpu"),
        ([*RUN, "--device", "meta"], "device 'meta' cannot be used"),
        (["generate", "hi", "--model", "random:llama", "--tokens", "2.0"], "'2.0' is not a whole number"),
        (["generate", "\\udcff\\udcfe", "--model", "random:llama"], "the prompt is no valid UTF-8 text"),
        (["run", "--model", "random:llama?seed=٣"], "is not <key>=<positive integer>"),
        (["run", "--model", "random:llama?layers=99999999999999999999"], "is not <key>=<positive integer>"),
    ],
)
def test_command_lines(refuse: Refuse, command: list[str], told: str) -> None:
    command = [argument.encode().decode("unicode_escape") if "udc" in argument else argument for argument in command]
    assert told in refuse(*command)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("int:bits=٣", "holds characters that no spec has"),
        ("int:bits=4\nhadamard", "holds characters that no spec has"),
        ("int:bits=1_0", "int:bits='1_0' is not a whole number"),
        ("int:bits=4,sinks=99999999999999999999", "is beyond 2,147,483,647"),
        ("int:bits=4,group=100000000000", "is beyond 2,147,483,647"),
        ("pca:rank=0x1", "is not a number"),
        ("pca:rank=1_0.5", "is not a number"),
        ("pca:rank=infinity", "is not a number"),
    ],
)
def test_specs(refuse: Refuse, spec: str, told: str) -> None:
    assert told in refuse("run", "--model", "random:llama", "--compressor", spec)


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
