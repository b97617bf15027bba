"""``kvbench fit`` from the outside: what it prints, and that the folder is a compressor for the other verbs."""

import json
from pathlib import Path

import pytest
from kept_kernels import cache_with_kernels

from kvbench.cli import main as cli

SMALL = ("--model", "random:llama", "--text", "pydoc", "--windows", "2", "--length", "128", "--tokens", "256")


def kvbench(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return ended.value.code


def test_fit_then_generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("KVBENCH_CACHE", cache_with_kernels(tmp_path / "cache"))
    command = ("fit", "--method", "kvtc", "--target", "bits=3", "--save", tmp_path / "f", *SMALL)
    assert kvbench(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["spec"].startswith("kvtc:bits=") and found["measured_bits"] == pytest.approx(3, rel=0.02)
    assert kvbench(*command) == 0
    told = capsys.readouterr()
    assert found["spec"] in told.out and "keys: bits" in told.out
    assert told.err.endswith(f"use it: --model random:llama --compressor saved:path={tmp_path}/f\n")
    prompt = "Once upon a time there was a model that remembered far too much of what it had read."
    options = ("--model", "random:llama", "--tokens", 8, "--json")
    assert kvbench("generate", prompt, "--compressor", f"saved:path={tmp_path}/f", *options) == 0
    assert json.loads(capsys.readouterr().out)["compressed"]["body_tokens"] > 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (("--target", "kb=3"), "cannot read --target 'kb=3'; write bits=3"),
        (("--method", "kvtcc"), "unknown compressor 'kvtcc'; did you mean 'kvtc'?"),
        (("--target", "bits=77"), "kvtc cannot take 77 bits per element at 256 tokens; the nearest is"),
        (("--save", "a,b"), "must hold no '+' and no ','"),
    ],
)
def test_bad_input_is_one_line(
    changes: tuple[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setenv("KVBENCH_CACHE", cache_with_kernels(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    given = dict(zip(SMALL[::2], SMALL[1::2], strict=True)) | {"--method": "kvtc", "--target": "bits=3"}
    given |= dict([changes])
    assert kvbench("fit", *(word for pair in given.items() for word in pair)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and reason in captured.err
