"""``kvbench lm-eval``: local tasks of the harness, and what is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from local_tasks import CHOICE, write_rows, write_task

from kvbench.cli import main as cli

tasks = pytest.importorskip("lm_eval.tasks", reason="lm-eval is not installed: pip install kvbench[lm-eval]")

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lm_eval(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """``kvbench lm-eval`` on a tiny model, with a folder of tasks: exit code, stdout and stderr."""
    text, choices = "number {} of some words that fill the context", [" one", " two"]
    rows = [{"text": text.format(index), "choices": choices, "answer": index % 2} for index in range(4)]
    write_task(tmp_path, "local_choice", CHOICE, write_rows(tmp_path / "rows.jsonl", rows))
    write_task(tmp_path, "local_broken", CHOICE, tmp_path / "nowhere.jsonl")

    # The harness's own tasks take a quarter of a minute to read.
    monkeypatch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))

    def run(
        *arguments: str, task: str = "local_choice", spec: str = "int:bits=4", folder: str = ""
    ) -> tuple[int, str, str]:
        given = {"tasks": task, "compressor": spec, "model": "random:llama", "include-path": folder or str(tmp_path)}
        options = [word for name, value in given.items() for word in (f"--{name}", value)]
        with pytest.raises(SystemExit) as ended:
            cli.main(["lm-eval", *options, *arguments])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_a_table_has_both(lm_eval: Cli) -> None:
    code, out, _ = lm_eval()
    assert code == 0 and "local_choice" in out and "acc" in out and "none" in out and "int:bits=4" in out


def test_json_is_the_harness_own(lm_eval: Cli) -> None:
    code, out, _ = lm_eval("--json", "--limit", "2")
    results = json.loads(out)
    assert code == 0 and list(results) == ["none", "int:bits=4"]
    assert 0 <= results["none"]["results"]["local_choice"]["acc,none"] <= 1
    judged = results["int:bits=4"]["verdicts"]["local_choice"]["acc,none"]
    assert judged["verdict"] in ("unharmed", "undecided", "undecidable") and len(judged["interval"]) == 2


@pytest.mark.parametrize(
    ("arguments", "task", "spec", "told"),
    [
        (("--limit", "0"), "local_choice", "int:bits=4", "--limit 0 is too few"),
        ((), "local_choise", "int:bits=4", "unknown task 'local_choise'; near are local_choice"),
        ((), " , ", "int:bits=4", "--tasks names no task"),
        ((), "local_broken", "int:bits=4", "lm-eval could not run local_broken"),
        ((), "local_choice", "intt:bits=4", "did you mean 'int'"),
        (("--chat",), "local_choice", "int:bits=4", "no chat template"),
    ],
)
def test_bad_input_is_one_line(lm_eval: Cli, arguments: tuple[str, ...], task: str, spec: str, told: str) -> None:
    code, out, err = lm_eval(*arguments, task=task, spec=spec)
    assert code == 2 and told in err and "Traceback" not in err and not out


def test_a_folder_that_is_not_there(lm_eval: Cli) -> None:
    code, _, err = lm_eval(folder="nowhere")
    assert code == 2 and "--include-path nowhere is no folder" in err
