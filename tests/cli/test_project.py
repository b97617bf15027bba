"""``kvbench project``: what it prints, writes and refuses; and that the README quotes it rightly."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from kvbench.cli import main as cli
from kvbench.cli.console import out
from kvbench.models.public_configs import public_names, read_config

README = Path(__file__).parents[2] / "README.md"
CPU = ("--device", "cpu", "--cpu-bandwidth", "20", "--cpu-tflops", "0.2", "--cpu-memory", "8")
Project = Callable[..., tuple[int, str, str]]


@pytest.fixture
def project(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Project:
    """Exit code, stdout and stderr of ``kvbench project``."""
    monkeypatch.setattr(out, "_width", 200)

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(["project", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return ended.value.code, captured.out, captured.err

    return call


def rows_of(told: str) -> list[dict[str, Any]]:
    rows = json.loads(told)
    assert all(row["kind"] == "projection" for row in rows)
    return rows


def test_a_table_for_every_device_says_that_it_is_a_projection(project: Project):
    code, told, _ = project("--model", "deepseek-v3", "--device", "h100,h20", "--weights", "fp8", "--ep", 32)
    assert code == 0
    assert told.count("projection: deepseek-v3 on 32 × ") == 2
    told = " ".join(told.split())  # wherever lines break
    assert "nothing was run" in told
    assert "70,272" in told and "4,997,120" in told and "does not fit" in told
    assert "One new token is bound by reading the latent" in told and "is bound by arithmetic" in told


def test_json_has_every_device_compressor_context_and_batch(project: Project):
    specs = "none,int:bits=4,group=32,recent=0"
    options = ["--context", "1k..4k", "--batch", "1,max", "--compressor", specs, "--json"]
    code, told, _ = project("--model", "smollm2-135m", *CPU, *options, "--weights", "fp32")
    rows = rows_of(told)
    assert code == 0 and len(rows) == 2 * 3 * 2
    assert {row["compressor"] for row in rows} == {"none", "int:bits=4,group=32,recent=0"}
    one = next(row for row in rows if row["compressor"] == "none" and row["context"] == 1024 and row["batch"] == 1)
    assert one["bytes_per_token"] == 2 * 23_040 and one["cache_bytes"] == 1024 * 2 * 23_040
    assert one["step_s"] == pytest.approx((4 * 134_515_008 + one["cache_bytes"]) / 20e9)
    assert one["binds"]["limit"] == "memory" and one["binds"]["of"] == "weights"
    assert one["longest_context"] == 8192 and all(row["fits"] for row in rows)


def test_half_the_efficiency_takes_twice_the_time(project: Project):
    options = ["--model", "smollm2-135m", *CPU, "--context", "1k", "--batch", "1", "--json"]
    (best,) = rows_of(project(*options)[1])
    (half,) = rows_of(project(*options, "--memory-efficiency", 0.5)[1])
    assert half["step_s"] == pytest.approx(2 * best["step_s"]) and half["efficiency"]["memory"] == 0.5


def test_out_gets_a_table_and_a_chart_that_say_what_they_are(project: Project, tmp_path: Path):
    code, told, _ = project("--model", "llama-3.1-8b", "--compressor", "none,int:bits=4", "--out", tmp_path / "p")
    table, chart = (
        tmp_path / "p" / name for name in ("table.md", "llama-3.1-8b-largest-batch-that-fits-projection.svg")
    )
    assert code == 0 and {str(table), str(chart)} <= set(told.splitlines())
    assert table.read_text("utf-8").startswith("## projection: llama-3.1-8b on h100")
    assert "Projection" in chart.read_text("utf-8") and "h100 · none" in chart.read_text("utf-8")


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """A folder with the config of a public model, some fields of it changed or left out (None)."""

    def write(name: str, **changes: Any) -> Path:
        source = Path(cli.__file__).parents[1] / "models" / "public" / f"{name}.json"
        fields = json.loads(source.read_text()) | changes
        (tmp_path / "mine").mkdir(exist_ok=True)
        kept = {key: value for key, value in fields.items() if key not in changes or value is not None}
        (tmp_path / "mine" / "config.json").write_text(json.dumps(kept))
        return tmp_path / "mine"

    return write


def test_a_folder_and_a_file_will_do(project: Project, config: Callable[..., Path]):
    folder = config("smollm2-135m", num_hidden_layers=3)
    for path in (folder, folder / "config.json"):
        rows = rows_of(project("--model", path, "--context", "1k", "--json")[1])
        assert rows[0]["model"] == "mine" and rows[0]["bytes_per_token"] == 2304


@pytest.mark.parametrize("missing", ["kv_lora_rank", "qk_rope_head_dim", "v_head_dim"])
def test_latent_attention_without_its_ranks_is_refused(project: Project, config: Callable[..., Path], missing: str):
    code, told, err = project("--model", config("deepseek-v3", **{missing: None}))
    assert (code, told) == (2, "") and f"its config lacks {missing}" in err and len(err.splitlines()) == 1


def test_what_is_no_decoder_is_refused(project: Project, tmp_path: Path):
    BertConfig().save_pretrained(tmp_path / "bert")
    code, told, err = project("--model", tmp_path / "bert")
    assert (code, told) == (2, "") and "model type 'bert' is no decoder whose parameters are counted here" in err
    for text, reason in (("{", "is no JSON"), ("[]", "it is no model's config"), ('{"model_type": "xyz"}', "'xyz'")):
        (tmp_path / "bad.json").write_text(text)
        code, told, err = project("--model", tmp_path / "bad.json")
        assert (code, told) == (2, "") and reason in err and len(err.splitlines()) == 1
    code, _, err = project("--model", tmp_path)
    assert code == 2 and "cannot read" in err and len(err.splitlines()) == 1


def test_public_configs_are_read_and_packaged():
    """Data files reach a wheel only by a pattern of pyproject.toml."""
    assert {"deepseek-v3", "llama-3.1-8b", "qwen3-30b-a3b", "smollm2-135m"} <= set(public_names())
    assert all(read_config(name)[0] == name for name in public_names())
    import tomllib

    package = Path(cli.__file__).parents[1]
    settings = tomllib.loads((package.parent / "pyproject.toml").read_text("utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["kvbench"]
    matched = {path for pattern in patterns for path in package.glob(pattern)}
    data = {path for path in package.rglob("*") if path.suffix in (".toml", ".json", ".j2")}
    assert data and data <= matched


def section(title: str) -> str:
    """The section of the README under a heading."""
    return README.read_text("utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_readme_quotes_what_its_commands_print(project: Project):
    text = section("What the hardware allows")
    commands = re.findall(r"^kvbench project (.*deepseek.*)$", text, re.MULTILINE)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    quoted = re.findall(r"\d{1,3}(?:,\d{3})+|\b\d+(?= rows)", prose)
    assert len(commands) >= 2 and len(quoted) >= 8
    printed = [project(*shlex.split(command, comments=True)) for command in commands]
    assert [code for code, _, _ in printed] == [0] * len(commands)
    told = set(re.findall(r"[\d,]*\d", " ".join(out for _, out, _ in printed)))
    assert [figure for figure in quoted if figure not in told] == []
