"""pytest-benchmark's JSON as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvbench.cli.main import app
from kvbench.errors import KvbenchError
from kvbench.report.benchmarks import markdown, read_benchmarks

MACHINE = {
    "size": "quick",
    "processor": "a processor",
    "cores": 2,
    "threads": 2,
    "packages": {"torch": "2.13.0"},
    "commit": "ab" * 20,
    "changed": True,
    "kernels": "numba VNNI",
    "read_bandwidth": 20.25e9,
    "copy_bandwidth": 18e9,
}


def benchmark(arm: str, seconds: float, group: str = "attention alone", **facts: Any) -> dict[str, Any]:
    return {"group": group, "name": f"test[{arm}]", "stats": {"median": seconds}, "extra_info": {"arm": arm} | facts}


def written(folder: Path, *benchmarks: dict[str, Any]) -> Path:
    path = folder / "out.json"
    data = {"machine_info": {"kvbench": MACHINE}, "datetime": "2026-11-22T01:00:00", "benchmarks": list(benchmarks)}
    path.write_text(json.dumps(data))
    return path


RATIO = {"folded": {"ratio": 3.456, "low": 3.31, "high": 3.6, "n": 40}}
INT8 = benchmark("int8", 0.0016, ratios=RATIO, bytes_read=13_000_000, share_of_read=0.61, error=3e-4, attention="a | b")
FOLDED = benchmark("folded", 0.0055, ratios={}, bytes_read=50_000_000, share_of_read=0.45, error=5e-7)


def test_a_group_is_a_table_with_a_row_for_every_arm(tmp_path):
    text = markdown(read_benchmarks(written(tmp_path, FOLDED, INT8, benchmark("hf", 0.2, group="decode step"))))
    assert text.count("### ") == 2 and "### attention alone" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| int8"))
    assert [cell.strip() for cell in row.split(" | ")][1:6] == ["1.60", "3.46 [3.31, 3.60]", "13.0", "61", "0.00030"]
    assert text.endswith("| hf | 200 |\n"), "columns without a number in a table are left out"


def test_the_machine_and_the_command_are_told(tmp_path):
    text = markdown(read_benchmarks(written(tmp_path, INT8)))
    assert "2026-11-22" in text and "`pytest benchmarks/ --quick --benchmark-json=…`" in text
    assert "2 of 2 cores" in text and "20.2 GB/s read" in text and "commit ababababab with changes" in text


def test_foreign_text_stays_in_its_cell(tmp_path):
    assert "a \\| b" in markdown(read_benchmarks(written(tmp_path, INT8)))


def test_the_command_line_prints_it(tmp_path, capsys):
    path = written(tmp_path, FOLDED, INT8)
    assert app(["report", str(path)]) == 0
    assert capsys.readouterr().out == markdown(read_benchmarks(path))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"benchmarks": [{}], "machine_info": {}}', '{"benchmarks": 3}'])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(KvbenchError, match="is not what `pytest benchmarks/") as caught:
        read_benchmarks(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_a_file_without_our_benchmarks_is_refused(tmp_path):
    with pytest.raises(KvbenchError, match="holds no finished benchmark"):
        read_benchmarks(written(tmp_path))
    with pytest.raises(KvbenchError, match="cannot read"):
        read_benchmarks(tmp_path / "none.json")
