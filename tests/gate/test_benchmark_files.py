"""Files of pytest-benchmark side by side."""

from __future__ import annotations

import json

import pytest

from kvbench.cli import main as cli
from kvbench.errors import UndecidedError
from kvbench.gate.benchmark_files import compare_benchmarks
from kvbench.gate.times import TimeVerdict

STEADY = [1.0, 1.01, 0.99, 1.0, 1.005, 0.995, 1.0, 1.002]


def write(path, cpu="a processor", **benchmarks):
    entries = [{"fullname": name, "stats": {"data": data, "median": 1.0}} for name, data in benchmarks.items()]
    info = {"machine": "x86_64", "cpu": {"brand_raw": cpu, "count": 2}}
    path.write_text(json.dumps({"machine_info": info, "benchmarks": entries}))
    return path


def test_every_benchmark_has_a_verdict(tmp_path):
    slower = [1.3 * time for time in STEADY]
    before = write(tmp_path / "a.json", kept=STEADY, slow=STEADY, fast=slower, gone=STEADY, short=STEADY[:3])
    after = write(tmp_path / "b.json", kept=STEADY, slow=slower, fast=STEADY, short=STEADY, new=STEADY)
    rows = {row.key: row for row in compare_benchmarks(before, after)}
    verdicts = {key: row.verdict for key, row in rows.items()}
    assert verdicts == {
        "kept": TimeVerdict.SAME,
        "slow": TimeVerdict.SLOWER,
        "fast": TimeVerdict.FASTER,
        **dict.fromkeys(("gone", "short", "new"), TimeVerdict.NOT_MEASURED),
    }
    assert rows["slow"].change == pytest.approx(0.3) and "not in the second" in rows["gone"].note
    assert rows["short"].note == "with 3 rounds, 6 are needed, in the first file"


def test_other_machines_and_other_files_are_refused(tmp_path):
    one, other = write(tmp_path / "a.json", x=STEADY), write(tmp_path / "b.json", "another", x=STEADY)
    with pytest.raises(UndecidedError, match=r"is of a processor with 2 processors, .* their times are not comparable"):
        compare_benchmarks(one, other)
    for content in ("[]", "{", '{"benchmarks": [], "machine_info": 3}', '{"benchmarks": 7, "machine_info": {}}'):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(UndecidedError, match="is no file of pytest-benchmark"):
            compare_benchmarks(one, tmp_path / "c.json")
    zero = write(tmp_path / "c.json", x=[0.0, *STEADY])
    with pytest.raises(UndecidedError, match="is no file of pytest-benchmark"):
        compare_benchmarks(zero, one)
    with pytest.raises(UndecidedError, match="cannot read"):
        compare_benchmarks(tmp_path / "d.json", one)


def test_the_command_prints_what_changed(tmp_path, capsys):
    before = write(tmp_path / "a.json", kept=STEADY, slow=STEADY)
    after = write(tmp_path / "b.json", kept=STEADY, slow=[2 * time for time in STEADY])
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", str(before), str(after)])
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and printed.startswith("slow: slower: +100.0%") and "kept" not in printed
