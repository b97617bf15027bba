"""``kvbench heal`` from the outside: what it prints, and that the folder is a compressor for the other verbs."""

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from fp64 import one_thread

from kvbench.cli import main as cli
from kvbench.cli.heal import Learning
from kvbench.healing.distil import Distillation
from kvbench.healing.training import Training

__all__ = ["one_thread"]

Refuse = Callable[..., str]
pytestmark = pytest.mark.usefixtures("own_cache")

SMALL = {
    "--model": "random:llama?layers=1",
    "--compressor": "pca:rank=1,sinks=2,recent=6,block=8",
    "--ranks": "0.5,0.25",
    "--text": "pydoc",
    "--windows": "2",
    "--length": "128",
    "--steps": "6",
    "--every": "3",
    "--tokens": "48",
    "--sequences": "4",
    "--held-out": "1",
    "--save": "healed",
}


def command(**changes: str) -> list[str]:
    return ["heal", *(word for pair in (SMALL | changes).items() for word in pair)]


def kvbench(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return ended.value.code


def test_heal_then_generate(capsys: pytest.CaptureFixture[str]):
    assert kvbench(*command(), "--json") == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert [rank["folder"] for rank in told["ranks"]] == [".", "0.25"] and told["steps"] == 6
    lines = captured.err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"after {step} of at most 6 steps" for step in (0, 3, 6)]
    assert kvbench(*command()) == 0
    captured = capsys.readouterr()
    assert "saved:path=healed/0.25" in captured.out and "6 steps, the best after" in " ".join(captured.out.split())
    assert captured.err == "saved: healed · use it: --model random:llama?layers=1 --compressor saved:path=healed\n"
    options = ("--model", SMALL["--model"], "--tokens", 8, "--json")
    prompt = "Once upon a time there was a basis that was better than before."
    for spec in ("saved:path=healed", "saved:path=healed/0.25"):
        assert kvbench("generate", prompt, "--compressor", spec, *options) == 0
        assert json.loads(capsys.readouterr().out)["compressed"]["body_tokens"] > 0


def test_defaults_are_the_same_from_python():
    settings = asdict(Learning())
    assert [settings.pop(name) for name in ("text", "windows", "length")] == ["essays", 8, 1024]
    assert Training.of(**settings) == Training()


def test_an_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    trained = Distillation._train

    def interrupted(self: Distillation) -> float:
        if self.step == 4:
            raise KeyboardInterrupt
        return trained(self)

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "_train", interrupted)
        assert kvbench(*command()) == 130
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == f"interrupted; what is finished is kept, resume with: kvbench {shlex.join(command())}"
    assert kvbench(*command()) == 0
    assert capsys.readouterr().err.splitlines()[0].startswith("after 6 of at most 6 steps: held-out KL ")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"--compressor": "none"}, "none is a baseline: there is nothing to heal"),
        ({"--compressor": "pcaa:rank=1"}, "unknown compressor 'pcaa'; did you mean 'pca'?"),
        ({"--compressor": "int:bits=4"}, "int:bits=4 cannot be healed: it has no bases"),
        ({"--compressor": "saved:path=nowhere"}, "no fitted plan at nowhere/plan.safetensors"),
        ({"--model": "random:lama"}, "unknown random model family 'lama'"),
        ({"--text": "pydok"}, "unknown text 'pydok'; did you mean 'pydoc'?"),
        ({"--text": "short.txt"}, "text short.txt has 1 documents; 3 are needed for a calibration split"),
        ({"--text": "few"}, "tokens in its calibration split, 192 are needed (4 windows of 48)"),
        ({"--tokens": "12"}, "no token of 12 would be predicted from a compressed one"),
        ({"--windows": "0"}, "windows must be at least 1, got 0"),
        ({"--steps": "0"}, "steps must be at least 1, got 0"),
        ({"--rate": "-1"}, "rate must be a positive number"),
        ({"--ranks": "2"}, "cannot read ranks '2'; write shares of the spec's ranks in (0, 1]"),
        ({"--save": "taken"}, "folder taken is not empty; choose another, or empty it"),
        ({"--save": "a,b"}, "must hold no '+' and no ','"),
        ({"--dtype": "int8"}, "unknown dtype 'int8'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(refuse: Refuse, tmp_path: Path, changes: dict[str, str], told: str):
    (tmp_path / "short.txt").write_text("One paragraph.")
    for folder, texts in (("taken", 1), ("few", 10)):
        (tmp_path / folder).mkdir()
        for index in range(texts):
            (tmp_path / folder / f"{index}.txt").write_text(f"{index} a text of a few words")
    before = {path.name for path in tmp_path.iterdir()}
    assert told in refuse(*command(**changes))
    assert {path.name for path in tmp_path.iterdir()} <= before | {"cache"}
