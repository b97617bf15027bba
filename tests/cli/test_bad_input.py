"""Whatever is wrong with the input, a person reads one line: what was wrong, what exists, what to do. No traceback."""

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fp64 import one_thread
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny_suite import HEAD, SUITE
from transformers import AutoModelForCausalLM, BloomConfig, GPTJConfig

from kvbench.cli import main as cli
from kvbench.models.random_models import byte_tokenizer
from kvbench.runs.store import RunStore, read_records

__all__ = ["one_thread"]

Refuse = Callable[..., str]
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def suite(tmp_path: Path) -> Callable[..., Path]:
    """A suite file, the default one with ``replace``ments."""

    def write(text: str = SUITE, /, **replace: str) -> Path:
        for old, new in replace.items():
            assert old in text
            text = re.sub(rf"(?m)^{old} = .*$", f"{old} = {new}", text)
        (tmp_path / "tiny.toml").write_text(text)
        return tmp_path / "tiny.toml"

    return write


# ---- the command itself ----------------------------------------------------------------------------------------------


def test_a_prompt_is_judged_before_anything_is_calibrated(refuse: Refuse, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kvbench.measure.bench.calibrated", lambda *_, **__: pytest.fail("calibrated"))
    assert "context" in refuse("generate", "x" * 3000, "--model", "random:llama", "--compressor", "kvtc:bits=3")


def test_errors_are_one_line_on_any_terminal(refuse: Refuse, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kvbench.cli.console.err", Console(stderr=True, width=20))
    told = refuse("show", "[bold]nonsense[/bold]")
    assert told.startswith("unknown compressor '[bold]nonsense[/bold]'; known: asvd, ")


# ---- suites ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name = ", "tiny.toml is not valid TOML"),
        ("", "Field required"),
        (SUITE.replace("compressors", "compresors"), "unknown key"),
        (SUITE.replace("prefix = 16", "prefix = 47"), "prefix (47) must be at least 2 shorter than length (48)"),
        (SUITE.replace('["none"]', '["none", "none"]'), "'none' is named twice"),
        (SUITE.replace('["none"]', "[]"), "compressors"),
        (HEAD, "measures nothing: give it quality, speed, memory"),
        (SUITE.replace("documents = 1", "documents = 0"), "documents"),
    ],
)
def test_broken_suites(refuse: Refuse, suite: Callable[..., Path], text: str, told: str):
    assert told in refuse("run", "--suite", suite(text))


def test_unreadable_suites(refuse: Refuse, tmp_path: Path):
    assert "No such file" in refuse("run", "--suite", "missing.toml")
    (tmp_path / "folder.toml").mkdir()
    assert "Is a directory" in refuse("run", "--suite", "folder.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "cannot read suite binary.toml" in refuse("run", "--suite", "binary.toml")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text": '"nowhere.txt"'}, "unknown text 'nowhere.txt'"),
        ({"length": "4096"}, "test length 4096 needs 4096 tokens, but the context of random:llama ends at 2048"),
        ({"calibration_length": "4096"}, "calibration length 4096 needs 4096 tokens"),
        ({"documents": "100000"}, "text pydoc has"),
        ({"models": '["random:llama", "random:lama"]'}, "unknown random model family 'lama'"),
    ],
)
def test_what_no_trial_could_measure(refuse: Refuse, suite: Callable[..., Path], change: dict[str, str], told: str):
    assert told in refuse("run", "--suite", suite(**change))


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("[workload.speed]\nprompt = 2000\nsteps = 16\nrounds = 4\nwarmup = 1", "speed (prompt + the steps of all"),
        ("[workload.memory]\nprompt = 2048\nsteps = 1", "memory (prompt + steps) needs 2049 tokens"),
        ("[workload.memory]\nprompt = 2000\nsteps = 1\nbatch = 5000", "text pydoc has"),
    ],
)
def test_prompts_that_grow_beyond_the_context_or_the_text(refuse, suite: Callable[..., Path], part: str, told: str):
    assert told in refuse("run", "--suite", suite(f"{SUITE}{part}"), "--model", "random:gpt2")


def test_a_text_too_short_for_its_split(refuse: Refuse, suite: Callable[..., Path], tmp_path: Path):
    (tmp_path / "short.txt").write_text("One paragraph.\n\nAnother one.\n\nA third.\n")
    told = refuse("run", "--suite", suite(text='"short.txt"'))
    assert "text short.txt has 0 documents of at least 48 tokens in its test split, 1 are needed" in told
    (tmp_path / "single.txt").write_text("One paragraph.")
    assert "has 1 documents; 3 are needed" in refuse("run", "--suite", suite(text='"single.txt"'))


# ---- models ----------------------------------------------------------------------------------------------------------


def test_a_truncated_model_file(refuse: Refuse, suite: Callable[..., Path], folder: Path):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert f"cannot read the model in folder {folder}" in refuse("run", "--suite", suite(), "--model", folder)


def test_a_corrupt_model_file(refuse: Refuse, suite: Callable[..., Path], folder: Path):
    (folder / "model.safetensors").write_bytes(os.urandom(5000))
    assert f"cannot read the model in folder {folder}" in refuse("run", "--suite", suite(), "--model", folder)


def test_weights_that_are_not_finite(refuse: Refuse, suite: Callable[..., Path], folder: Path):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    told = refuse("run", "--suite", suite(), "--model", folder)
    assert "tensor model.norm.weight holds NaN or infinite values; the weights are broken" in told


def test_a_folder_that_is_no_model(refuse: Refuse, tmp_path: Path):
    assert "has no config.json; give a folder written by save_pretrained" in refuse("run", "--model", tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=300),
        GPTJConfig(n_embd=32, n_layer=1, n_head=2, rotary_dim=8, n_positions=2048, vocab_size=300),
    ],
    ids=["bloom", "gptj"],
)
def test_an_unsupported_architecture(refuse: Refuse, suite: Callable[..., Path], tmp_path: Path, config):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "odd")
    byte_tokenizer().save_pretrained(tmp_path / "odd")
    told = refuse("run", "--suite", suite(), "--model", tmp_path / "odd")
    assert type(config).__name__.removesuffix("Config") in told and "attention" in told


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_file_in_the_place_of_the_results_folder(refuse: Refuse, suite: Callable[..., Path], tmp_path: Path):
    (tmp_path / "taken").write_text("mine")
    told = refuse("run", "--suite", suite(), "--out", "taken")
    assert told == "cannot make folder taken (File exists); choose another"
    assert "cannot make folder taken/deeper" in refuse("run", "--suite", suite(), "--out", "taken/deeper")
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_results_folder_that_cannot_be_written(refuse: Refuse, suite: Callable[..., Path], tmp_path: Path):
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed").chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(tmp_path / "sealed", os.W_OK):
        pytest.skip("this user may write anywhere")
    assert "sealed" in refuse("run", "--suite", suite(), "--out", "sealed")


def test_a_full_disk(refuse: Refuse, suite: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/tiny/records.jsonl")

    monkeypatch.setattr("kvbench.runs.store.append_bytes", full)
    told = refuse("run", "--suite", suite(), "--quiet")
    assert told == "runs/tiny/records.jsonl: No space left on device"


def test_results_of_another_schema(refuse: Refuse, suite: Callable[..., Path], tmp_path: Path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text(json.dumps({"schema_version": 99}))
    told = refuse("run", "--suite", suite(), "--out", "old")
    assert told.startswith("old was written with schema 99, this kvbench writes 2; give the run a new folder")


def test_results_of_another_suite(refuse: Refuse, suite: Callable[..., Path], tmp_path: Path):
    RunStore(tmp_path / "mixed").plan([], "other")
    assert "mixed holds suite 'other', not 'tiny'" in refuse("run", "--suite", suite(), "--out", "mixed")


@pytest.mark.parametrize("command", ["gate R --baseline b.json", "compare R R", "report R", "show abc --results R"])
def test_results_that_are_missing_or_damaged_decide_nothing(refuse: Refuse, command: str, tmp_path: Path):
    arguments = [str(tmp_path / "r") if word == "R" else word for word in command.split()]
    assert "no records at" in refuse(*arguments, code=3)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "records.jsonl").write_text("{}\n")
    assert "line 1 is corrupt" in refuse(*arguments, code=3)


def test_a_trial_that_does_not_exist(refuse: Refuse, suite: Callable[..., Path], tmp_path: Path):
    with pytest.raises(SystemExit):
        cli.main(["run", "--suite", str(suite()), "--out", "r", "--quiet", "--json"])
    assert read_records(tmp_path / "r")
    assert "unknown trial 'abc'" in refuse("show", "abc", "--results", "r")


def test_a_file_in_the_place_of_the_cache(
    refuse: Refuse, suite: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "file"))
    told = refuse("calibrate", "--model", "random:llama", "--text", "pydoc", "--windows", 2, "--length", 64)
    assert "cache folder" in told and "point KVBENCH_CACHE to another folder" in told
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--suite", str(suite()), "--compressor", "none", "--compressor", "kvtc:bits=3", "--json"])
    captured = capsys.readouterr()
    assert ended.value.code == 4 and [json.loads(line)["status"] for line in captured.out.splitlines()] == [
        "ok",
        "failed",
    ]
    assert "point KVBENCH_CACHE to another folder" in captured.err and "Traceback" not in captured.err
