"""``kvbench records`` and ``kvbench merge``."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from whole_record import MEMORY, PROVENANCE, QUALITY, SPEED, TRIAL

from kvbench.cli import main as cli
from kvbench.runs.records import Record
from kvbench.runs.store import RunStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = RunStore(tmp_path / "run")
    trials = [TRIAL.model_copy(update={"seed": seed}) for seed in range(3)]
    store.plan(trials, "quick")
    for seed, trial in enumerate(trials):
        memory = MEMORY.model_copy(update={"bits_per_element": 2.0 + seed})
        store.append(Record.of(trial, "ok", PROVENANCE, memory=memory, speed=SPEED, quality=QUALITY))
    return store.folder


def called(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_records_are_filtered(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert called("records", folder, "--where", "bits<3.5 and status=='ok'", "--json") == 0
    assert [row["bits"] for row in json.loads(capsys.readouterr().out)] == [2.0, 3.0]
    assert called("records", folder, "--where", "bits>3.5") == 0
    captured = capsys.readouterr()
    assert TRIAL.compressor in captured.out and "1 of 3 records" in captured.err
    assert called("records", folder, "--where", "bits>99") == 0
    assert "0 of 3 records" in capsys.readouterr().err
    assert called("records", folder, "--where", "bist>99") == 2
    assert "did you mean 'bits'?" in capsys.readouterr().err
    assert called("records", folder, "--fields") == 0
    assert "quality.noise_floor_kld" in capsys.readouterr().out


def test_a_parquet_file_is_opened_by_datasets(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "records.parquet"
    assert called("records", folder, "--parquet", file, "--where", "bits<3.5") == 0
    rows = datasets.load_dataset("parquet", data_files=str(file), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows["bits"] == [2.0, 3.0] and set(rows["compressor"]) == {TRIAL.compressor}
    assert called("records", folder, "--parquet", file, "--where", "bits>99") == 2


def test_merging(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert called("merge", folder, "--out", tmp_path / "all") == 0
    assert "3 records added" in capsys.readouterr().err
    assert called("merge", tmp_path, "--out", tmp_path / "all") == 2
