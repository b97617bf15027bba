"""The field's standard data from local copies in the hub's format, through the harness's own task definitions."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from local_tasks import write_rows

from kvbench.cli import main as cli
from kvbench.errors import KvbenchError
from kvbench.storage.data_dir import DATA_DIR, use_data_dir
from kvbench.texts.hub_data import PINNED, located, pinned_loading

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install kvbench[lm-eval]")

FILLER = "The grass is green. The sky is blue. " * 6
TASKS = ("gsm8k", "longbench_hotpotqa", "longbench2_academic_single", "infinitebench_passkey")


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few rows of four data sets, in the hub's columns and folders."""
    monkeypatch.setenv(DATA_DIR, "")  # put back at the end: the command line sets it
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(name: str, rows: list[dict[str, object]]) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_rows(tmp_path / name, rows)

    sums = [{"question": f"What is {i} + 1?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in range(8)]
    write("openai/gsm8k/main/train.jsonl", sums)
    write("openai/gsm8k/main/test.jsonl", sums[:2])
    asked = {"context": FILLER, "question": "Which colour has the sky?", "answers": ["blue"]}
    write("Xnhyacinth/LongBench/hotpotqa/test.jsonl", [asked])
    choices = ["green", "blue", "red", "none"]
    write(
        "recursal/longbench-v2/academic_single/train.jsonl",
        [{"context": FILLER, "question": "Which?", "choices": choices, "answer": 1}],
    )
    hidden = {"id": 0, "context": FILLER + "The pass key is 71432.", "input": "What is the pass key?"}
    write("xinrongzhang2022/InfiniteBench/passkey.jsonl", [hidden | {"answer": ["71432"], "options": []}])
    splits = "configs:\n- config_name: default\n  data_files:\n  - split: passkey\n    path: passkey.jsonl\n"
    (tmp_path / "xinrongzhang2022/InfiniteBench/README.md").write_text(f"---\n{splits}---\n")
    return tmp_path


def test_the_standard_tasks_run_from_local_copies(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tasks", ",".join(TASKS), "--compressor", "int:bits=4", "--model", "random:llama?context=8192"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["lm-eval", *arguments, "--data-dir", str(copies), "--json"])
    captured = capsys.readouterr()
    assert not ended.value.code, captured.err
    none, compressed = json.loads(captured.out).values()
    assert {*none["results"]} == {*TASKS} == {*compressed["verdicts"]}
    assert none["results"]["gsm8k"]["exact_match,strict-match"] == 0, "a random model does no sums"
    assert compressed["verdicts"]["gsm8k"]["exact_match,strict-match"]["verdict"] == "undecidable"
    assert "acc,none" in compressed["verdicts"]["longbench2_academic_single"]


def test_a_missing_column_is_named_in_one_line(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(copies / "openai/gsm8k/main/test.jsonl", [{"problem": "1 + 1?", "answer": "#### 2"}])
    write_rows(copies / "openai/gsm8k/main/train.jsonl", [{"problem": "1 + 1?", "answer": "#### 2"}] * 8)
    with pytest.raises(SystemExit) as ended:
        arguments = ["--tasks", "gsm8k", "--compressor", "int:bits=4", "--model", "random:llama"]
        cli.main(["lm-eval", *arguments, "--data-dir", str(copies)])
    err = capsys.readouterr().err
    assert ended.value.code == 2 and "lm-eval could not run gsm8k" in err and "question" in err
    assert "Traceback" not in err


def test_what_is_not_there_comes_from_the_hub_at_its_pinned_commit(copies: Path) -> None:
    use_data_dir(copies)
    assert located("openai/gsm8k", "main") == {"path": str(copies / "openai/gsm8k"), "data_dir": "main"}
    (copies / "openai/gsm8k/README.md").write_text("---\nconfigs: []\n---\n")
    assert located("openai/gsm8k", "main") == {"path": str(copies / "openai/gsm8k"), "name": "main"}
    use_data_dir(copies / "openai")
    assert located("openai/gsm8k", "main")["revision"] == PINNED["openai/gsm8k"]
    assert located("some/other", revision="abc") == {"path": "some/other", "name": None, "revision": "abc"}


def test_other_packages_load_as_before_when_it_is_over() -> None:
    load = datasets.load_dataset
    with pinned_loading():
        assert datasets.load_dataset is not load
    assert datasets.load_dataset is load


def test_a_data_dir_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KvbenchError, match=r"--data-dir .*nowhere is no folder; give one with local copies"):
        use_data_dir(tmp_path / "nowhere")
