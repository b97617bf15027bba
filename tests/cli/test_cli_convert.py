"""``kvbench convert`` from the outside: the folder it leaves, what other verbs do with it, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fp64 import one_thread
from tiny_suite import SUITE
from transformers import AutoModelForCausalLM

from kvbench.cli import main as cli
from kvbench.conversion import convert as module
from kvbench.runs.store import read_records

__all__ = ["one_thread"]

Refuse = Callable[..., str]
pytestmark = pytest.mark.usefixtures("own_cache")

SMALL = ("--model", "random:qwen2", "--text", "pydoc", "--windows", "2", "--length", "64")
SPEC = "mla:latent=24,rope_dims=8,choice=shared"


def kvbench(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return ended.value.code


def test_convert_then_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert kvbench("convert", "--compressor", SPEC, "--out", "made/here", *SMALL, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["logits_differ"] < 1e-5
    assert (told["kv_lora_rank"], told["qk_rope_head_dim"], told["elements_before"]) == (25, 8, 64)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["here"]
    model = AutoModelForCausalLM.from_pretrained("made/here")
    assert model.config.model_type == "deepseek_v3" and model.dtype == torch.float32
    (tmp_path / "tiny.toml").write_text(SUITE.replace('["none"]', '["none", "int:bits=8"]'))
    assert kvbench("run", "--suite", "tiny.toml", "--model", "made/here", "--out", "records") == 0
    records = read_records(tmp_path / "records")
    assert {record.trial.compressor for record in records} == {"none", "int:bits=8"}
    assert all(record.status == "ok" for record in records)


def test_it_says_what_it_made(capsys: pytest.CaptureFixture[str]):
    assert kvbench("convert", "--compressor", SPEC, "--out", "made", *SMALL) == 0
    told = capsys.readouterr()
    printed = " ".join(told.out.split())
    assert "33 (25 latent, 8 RoPE) elements a token and layer, 64 before: 1.94 times fewer" in printed
    assert told.err.endswith("written: made · use it: --model made\n")


def test_a_saved_plan_is_converted_as_it_is(capsys: pytest.CaptureFixture[str]):
    found = ("--method", "mla:rope_dims=8,choice=shared", "--target", "bits=24", "--save", "fit", "--tokens", "256")
    assert kvbench("fit", *found, *SMALL, "--json") == 0
    spec = json.loads(capsys.readouterr().out)["spec"]
    assert kvbench("convert", "--compressor", "saved:path=fit", "--out", "made", *SMALL, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kv_lora_rank"] == round(64 * float(spec.partition("latent=")[2].partition(",")[0])) + 1
    assert told["logits_differ"] < 1e-5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"--compressor": "mla:latent=24"}, "compressor 'mla' needs rope_dims"),
        ({"--compressor": "pca:rank=0.5"}, "pca cannot be written as weights of DeepSeek layers; convert mla alone"),
        ({"--compressor": f"{SPEC}+int:bits=4"}, "int cannot be written as weights"),
        ({"--compressor": "mla:latent=24,rope_dims=8,choice=energi"}, "did you mean 'energy'?"),
        ({"--compressor": "mla:latent=24,rope_dims=8"}, "use mla with choice=shared"),
        ({"--compressor": "mla:latent=99,rope_dims=8,choice=shared"}, "latent=99, but keys and values have 64"),
        ({"--compressor": "mla:latent=24,rope_dims=64,choice=shared"}, "rope_dims=64, but this model rotates 32"),
        ({"--compressor": "mla:latent=24,rope_dims=7,choice=shared"}, "rope_dims=7 must be even"),
        ({"--model": "random:gpt2"}, "a gpt2 model has other layers; those of llama, mistral, qwen2 models fit"),
        ({"--model": "random:mistral"}, "layers with a sliding window"),
        ({"--model": "random:lama"}, "unknown random model family 'lama'"),
        ({"--text": "pydok"}, "unknown text 'pydok'; did you mean 'pydoc'?"),
        ({"--length": "1"}, "windows need length >= 2"),
        ({"--length": "99999"}, "the context of random:qwen2 ends at 2048"),
        ({"--dtype": "int8"}, "unknown dtype 'int8'"),
        ({"--out": "taken"}, "folder taken is not empty; choose another, or empty it"),
        ({"--out": "taken/notes.txt"}, "taken/notes.txt is a file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(refuse: Refuse, tmp_path: Path, changes: dict[str, str], told: str):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    given = dict(zip(SMALL[::2], SMALL[1::2], strict=True)) | {"--compressor": SPEC, "--out": "made"} | changes
    assert told in refuse("convert", *(word for pair in given.items() for word in pair))
    assert {path.name for path in tmp_path.iterdir()} <= {"taken", "cache"}
    assert (tmp_path / "taken" / "notes.txt").read_text() == "mine"


def test_a_model_that_came_out_wrong_is_not_kept(refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    through = module.logits_through_codecs
    monkeypatch.setattr(module, "logits_through_codecs", lambda *given: 1.1 * through(*given))
    told = refuse("convert", "--compressor", SPEC, "--out", "made", *SMALL)
    assert "the converted model's logits differ by" in told and "nothing was written" in told
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}
