"""The command line from the outside: exit codes, what goes to stdout, what a person reads."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from fp64 import one_thread
from kept_kernels import cache_with_kernels
from rich.console import Console

from kvbench.cli import main as cli
from kvbench.runs.measuring import Measurer
from kvbench.runs.progress import RunProgress
from kvbench.runs.store import read_records

__all__ = ["one_thread"]

SUITE = """
name = "tiny"
models = ["random:llama"]
compressors = ["none", "int:bits=4"]
[[workload]]
name = "w"
[workload.quality]
text = "pydoc"
calibration_text = "pydoc"
calibration_windows = 2
calibration_length = 64
documents = 2
length = 160
prefix = 100
[workload.speed]
prompt = 64
steps = 16
rounds = 2
warmup = 0
[workload.memory]
prompt = 150
steps = 1
peaks = false
"""
HEAVY = ("torch", "transformers", "datasets", "scipy", "numba", "pandas", "altair", "pydantic")


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture
def kvbench(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(ended.value.code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "tiny.toml"
    path.write_text(SUITE)
    return path


@pytest.fixture(scope="module")
def ran(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The results folder of a run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--suite", str(suite), "--out", str(folder), "--threads", "1", "--quiet"])
    assert ended.value.code == 0
    return folder


# ---- help ------------------------------------------------------------------------------------------------------------


def test_help_of_every_verb_imports_nothing_heavy():
    script = f"""
import sys
from kvbench.cli.main import app, main
verbs = [name for name in app if not name.startswith("-")]
for arguments in [["--help"], ["--version"], *([verb, "--help"] for verb in verbs)]:
    try:
        main(arguments)
    except SystemExit as ended:
        assert ended.code == 0, arguments
print("verbs:", *verbs)
print("heavy:", *[name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    *_, verbs, heavy = done.stdout.splitlines()
    assert heavy == "heavy:"
    assert {"run", "gate", "compare", "report", "ls", "show", "calibrate", "generate", "doctor"} <= {*verbs.split()}
    assert "runs/<suite>" in done.stdout and "random:<family>" in done.stdout, "angle brackets were taken for tags"


def test_lists_of_names_need_no_torch():
    script = """
import sys
from kvbench.cli.main import _exit_code
codes = [_exit_code(["ls", what]) for what in ("compressors", "suites", "models", "families", "texts", "devices")]
codes += [_exit_code(line.split()) for line in ("show pcaa", "run --compressor int:bits=4+pcaa", "run --suite quik")]
print("codes:", codes, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "codes: [0, 0, 0, 0, 0, 0, 2, 2, 2] False"


def test_version_is_the_packages(kvbench: Cli):
    from kvbench.hardware.environment import kvbench_version

    assert kvbench("--version") == Outcome(0, f"{kvbench_version()}\n", "")


def test_no_arguments_show_the_help(kvbench: Cli):
    outcome = kvbench()
    assert outcome.code == 0 and "Usage: kvbench COMMAND" in outcome.out


# ---- run -------------------------------------------------------------------------------------------------------------


def test_run_prints_a_table_and_where_the_records_are(kvbench: Cli, suite: Path, tmp_path: Path):
    outcome = kvbench("run", "--suite", suite, "--out", tmp_path / "r", "--threads", 1)
    assert outcome.code == 0 and "int:bits=4" in outcome.out and "random:llama · w" in outcome.out
    assert "[1/2] ok     random:llama | none | w (" in outcome.err
    assert f"records: {tmp_path}/r/records.jsonl · report: kvbench report {tmp_path}/r\n" in outcome.err
    again = kvbench("run", "--suite", suite, "--out", tmp_path / "r", "--threads", 1)
    assert again.code == 0 and again.out == outcome.out and "2 of 2 trials are already done" in again.err


def test_json_is_alone_on_stdout(kvbench: Cli, suite: Path, ran: Path):
    outcome = kvbench("run", "--suite", suite, "--out", ran, "--threads", 1, "--json")
    records = [json.loads(line) for line in outcome.out.splitlines()]
    assert [record["trial"]["compressor"] for record in records] == ["none", "int:bits=4"]
    assert [record["id"] for record in records] == [record.id for record in read_records(ran)]


def test_quiet_says_nothing_but_the_result(kvbench: Cli, suite: Path, tmp_path: Path):
    outcome = kvbench("run", "--suite", suite, "--out", tmp_path / "r", "--threads", 1, "--quiet", "--json")
    assert outcome.code == 0 and outcome.err == "" and len(outcome.out.splitlines()) == 2


def test_dry_run_tells_done_from_to_do(kvbench: Cli, suite: Path, ran: Path):
    options = ("--suite", suite, "--out", ran, "--threads", 1, "--dry-run")
    outcome = kvbench("run", *options, "--compressor", "none", "--compressor", "int:bits=2")
    states = [line.split(maxsplit=1)[1].replace("to do", "to-do").split()[0] for line in outcome.out.splitlines()]
    assert outcome.code == 0 and states == ["done", "to-do"]
    plan = [json.loads(line) for line in kvbench("run", *options, "--json").out.splitlines()]
    assert [(trial["state"], trial["key"]) for trial in plan][1] == ("done", "random:llama | int:bits=4 | w")
    assert len(read_records(ran)) == 2


def test_options_replace_the_suites_own(kvbench: Cli, suite: Path, tmp_path: Path):
    options = ("--model", "random:gpt2", "--compressor", "hf", "--dtype", "bf16", "--threads", 1, "--json")
    (line,) = kvbench("run", "--suite", suite, "--out", tmp_path / "r", *options).out.splitlines()
    trial = json.loads(line)["trial"]
    assert (trial["model"], trial["compressor"], trial["dtype"]) == ("random:gpt2", "hf", "bfloat16")


def test_failed_trials_are_told_in_one_line_each(kvbench: Cli, suite: Path, tmp_path: Path, monkeypatch):
    def broken(self: Measurer, trial: object) -> None:
        raise ValueError("shape [2, 3] does not fit [/red]\nand a second line that is long " + "x" * 200)

    monkeypatch.setattr(Measurer, "_measure", broken)
    monkeypatch.setattr("kvbench.cli.console.err", Console(stderr=True, width=30))
    outcome = kvbench("run", "--suite", suite, "--out", tmp_path / "r", "--threads", 1)
    assert outcome.code == 4
    told = [line for line in outcome.err.splitlines() if " failed " in line]
    assert told[0].startswith(
        "[1/2] failed random:llama | none | w: shape [2, 3] does not fit [/red] and a second line"
    )
    assert len(told) == 2 and told[0].endswith("x" * 200)
    assert kvbench("run", "--suite", suite, "--out", tmp_path / "r", "--threads", 1, "--json").code == 4


def test_a_terminal_sees_an_estimate_after_the_first_trial(ran: Path):
    records = read_records(ran)
    console = Console(file=StringIO(), force_terminal=True, width=100)
    with RunProgress(console) as progress:
        progress.planned([record.trial for record in records], 0)
        progress.started(records[0].trial)
        progress.stage("calibrating", 1, 8)
        progress.ended(records[0])
    shown = console.file.getvalue()
    assert "none: calibrating 1/8" in shown and "1/2" in shown and re.search(r"left.*0:00:\d\d", shown)


def test_interrupt_says_how_to_resume(kvbench: Cli, suite: Path, tmp_path: Path, monkeypatch):
    def interrupted(self: Measurer, trial: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Measurer, "_measure", interrupted)
        outcome = kvbench("run", "--suite", suite, "--out", tmp_path / "a b", "--threads", 1, "--json")
    assert outcome.code == 130 and outcome.out == ""
    again = f"kvbench run --suite {suite} --out '{tmp_path}/a b' --threads 1 --json"
    assert outcome.err.splitlines()[-1] == f"interrupted; what is finished is kept, resume with: {again}"
    assert [record.status for record in read_records(tmp_path / "a b")] == ["interrupted"]
    resumed = kvbench("run", "--suite", suite, "--out", tmp_path / "a b", "--threads", 1, "--json")
    assert resumed.code == 0 and len(resumed.out.splitlines()) == 2


def test_other_interrupts_have_nothing_to_resume(kvbench: Cli, monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvbench.measure.doctor.diagnose", interrupted)
    assert kvbench("doctor") == Outcome(130, "", "interrupted\n")


# ---- looking at results ----------------------------------------------------------------------------------------------


def test_gate_passes_fails_and_cannot_decide(kvbench: Cli, ran: Path, tmp_path: Path):
    baseline = tmp_path / "baseline.json"
    assert kvbench("gate", ran, "--baseline", baseline).code == 3
    made = kvbench("gate", ran, "--baseline", baseline, "--update")
    assert made == Outcome(0, "", f"baseline written: {baseline} (2 records)\n")
    passed = kvbench("gate", ran, "--baseline", baseline)
    assert passed.code == 0 and "passed" in passed.out
    content = json.loads(baseline.read_text())
    content["entries"]["random:llama | int:bits=4 | w"]["allocated_bytes"] += 1
    baseline.write_text(json.dumps(content))
    failed = kvbench("gate", ran, "--baseline", baseline, "--json")
    assert failed.code == 1 and json.loads(failed.out)["exit_code"] == 1
    baseline.write_text("{")
    assert kvbench("gate", ran, "--baseline", baseline).code == 3


def test_compare_a_run_with_itself(kvbench: Cli, ran: Path):
    outcome = kvbench("compare", ran, ran / "records.jsonl", "--same")
    assert outcome.code == 0 and "int:bits=4" in outcome.out


def test_report_writes_files_and_prints_their_names(kvbench: Cli, ran: Path, tmp_path: Path):
    outcome = kvbench("report", ran, "--out", tmp_path)
    written = [Path(line) for line in outcome.out.splitlines()]
    assert outcome.code == 0 and written and all(path.parent == tmp_path and path.stat().st_size for path in written)
    assert any(path.suffix == ".html" for path in written)


def test_report_prints_the_command_of_every_row(kvbench: Cli, ran: Path):
    rows = [line.split("\t") for line in kvbench("report", ran, "--commands").out.splitlines()]
    assert [compressor for compressor, _ in rows] == ["none", "int:bits=4"]
    assert all(command.startswith("kvbench run --suite ") and compressor in command for compressor, command in rows)


def test_show_explains_specs_and_prints_records(kvbench: Cli, ran: Path):
    assert "bits" in kvbench("show", "kvtc").out
    composed = kvbench("show", "pca:rank=0.5+int:bits=4").out
    assert composed.startswith("pca:rank=0.5+int:bits=4\n") and "low rank" in composed and "quantization" in composed
    record = read_records(ran)[0]
    outcome = kvbench("show", record.id, "--results", ran)
    assert outcome.code == 0 and json.loads(outcome.out)["checksum"] == record.checksum


def test_show_with_a_model_says_what_it_takes_there(kvbench: Cli):
    outcome = kvbench("show", "turboquant:bits=3", "--model", "random:llama")
    assert outcome.code == 0, outcome.err
    assert "held once for all caches" in outcome.out and "bits with bases" in outcome.out
    pays = re.search(r"pays from +([\d,]+) tokens of one sequence", outcome.out)
    assert pays and 100 < int(pays[1].replace(",", "")) < 1000
    never = kvbench("show", "none", "--model", "random:llama").out
    assert "never takes fewer bytes" in never
    stock = kvbench("show", "hf", "--model", "random:llama")
    assert stock.code == 2 and "measured, not predicted" in stock.err
    assert kvbench("show", "kvtc", "--model", "random:llama").code == 2, "without bits there is nothing to fit"


@pytest.mark.parametrize("what", ["compressors", "models", "families", "texts", "suites"])
def test_ls_as_table_and_as_json(kvbench: Cli, what: str):
    rows = json.loads(kvbench("ls", what, "--json").out)
    assert len(rows) > 2 and len({row["name"] for row in rows}) == len(rows)
    table = kvbench("ls", what).out
    assert all(row["name"] in table for row in rows)


def test_tables_in_pipes_are_wider_than_a_narrow_terminal():
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "kvbench", "ls", "models"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
    assert any(
        "gemma-3-270m-q4_k_m" in line and "https://ai.google.dev" in line for line in outcome.stdout.splitlines()
    )


def test_a_reader_that_goes_away_is_no_failure():
    command = [sys.executable, "-m", "kvbench", "ls", "models", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait(timeout=60) == 0
    child.stderr.close()


# ---- models ----------------------------------------------------------------------------------------------------------


def test_generate_side_by_side(kvbench: Cli):
    options = ("--model", "random:llama", "--compressor", "int:bits=4,recent=0", "--tokens", 50)
    outcome = kvbench("generate", "Once upon a time", *options, "--json")
    assert outcome.code == 0 and outcome.err == ""
    result = json.loads(outcome.out)
    assert result["prompt_tokens"] == 16 and len(result["compressed"]["tokens"]) == 50
    assert result["compressed"]["body_tokens"] > 0 and result["uncompressed"]["body_tokens"] == 0
    panels = kvbench("generate", "Once upon a time", *options).out
    assert "none" in panels and "int:bits=4,recent=0" in panels and "tokens compressed" in panels


def test_generate_says_when_nothing_was_compressed(kvbench: Cli):
    for spec, told in (("int:bits=4", True), ("hf", False)):
        outcome = kvbench("generate", "Hi", "--model", "random:llama", "--tokens", 2, "--compressor", spec)
        assert ("nothing was compressed" in outcome.out) == told


def test_calibrate_prints_the_folder_and_finds_it_again(kvbench: Cli, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("KVBENCH_CACHE", cache_with_kernels(tmp_path / "cache"))
    command = ("calibrate", "--model", "random:llama", "--text", "pydoc", "--windows", 2, "--length", 64)
    outcome = kvbench(*command)
    assert outcome.code == 0 and Path(outcome.out.strip()).is_dir() and outcome.err == ""
    assert kvbench(*command) == outcome


def test_doctor_speaks_json(kvbench: Cli):
    outcome = kvbench("doctor", "--json")
    assert outcome.code == 0 and outcome.err == ""
    assert {"environment", "bandwidth", "noise", "warnings", "problems"} <= {*json.loads(outcome.out)}


def test_lists_and_explanations_say_what_attends(kvbench: Cli):
    rows = {row["name"]: row["attends"] for row in json.loads(kvbench("ls", "compressors", "--json").out)}
    assert rows["none"] == "numba exact" and rows["int"] == "numba int" and rows["hf"] == "stock"
    assert {rows[name] for name in ("kvtc", "ftc")} == {"numba rebuilt"}
    assert rows["pca"] == "torch rebuilt" and rows["kivi"] == "numba int"
    assert "decode of ftc:bits=4: numba rebuilt" in kvbench("show", "ftc").out
    assert "depends on the settings and the model" in kvbench("show", "turboquant:bits=3").out
    model = "random:llama?hidden=128,heads=4,kv_heads=4,head_dim=32"
    shown = kvbench("show", "turboquant:bits=3", "--model", model).out
    assert "decode of turboquant:bits=3: numba levels" in shown and "a table turns" in shown
