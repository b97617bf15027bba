"""A new part of a workload is a file, a line of the registry and a file of columns; everything else follows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from kvbench.runs.code_identity import ROOT

PART = """
from kvbench.measure.parts.part import PartSettings
from kvbench.storage.frozen import Frozen


class LengthWorkload(PartSettings):
    prompt: int = 8

    @property
    def in_words(self):
        return f"{self.prompt} tokens"

    def windows(self, bench, compressor, inputs):
        return {"length": bench.evaluation_windows(inputs.text, self.prompt, 1, inputs.split)}

    def measure(self, bench, arm, inputs):
        with arm.entered():
            cache = arm.new_cache()
            arm.forward(bench.prompt_ids(inputs.text, self.prompt, inputs.split), cache)
        return LengthResult(tokens=cache.get_seq_length())


class LengthResult(Frozen):
    tokens: int
"""
COLUMNS = """
from kvbench.report.columns.column import Column, plain


def tokens(record):
    return plain(record.length.tokens, str) if record.length else None


COLUMNS = (Column("tokens kept", "After the prompt.", tokens, summary=True),)
"""
IMPORT = "from kvbench.measure.parts.length import LengthResult, LengthWorkload\n"
LINE = "    length = WorkloadPart(LengthWorkload, LengthResult)\n"
SUITE = """
name = "lengths"
models = ["random:llama"]
compressors = ["int:bits=4"]
[[workload]]
name = "w"
[workload.quality]
text = "pydoc"
calibration_text = "pydoc"
calibration_windows = 1
calibration_length = 64
documents = 1
length = 64
prefix = 16
[workload.length]
prompt = 9
"""


def test_a_part_is_one_entry(tmp_path: Path):
    package = tmp_path / "kvbench"
    shutil.copytree(ROOT / "kvbench", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(package / "kernels" / "cpu")  # they would be compiled anew
    (package / "measure" / "parts" / "length.py").write_text(PART)
    (package / "report" / "columns" / "length.py").write_text(COLUMNS)
    registry = package / "measure" / "parts" / "__init__.py"
    before, start, after = registry.read_text().partition("    quality = WorkloadPart")
    registry.write_text(before.replace("from pydantic", IMPORT + "from pydantic") + LINE + start + after)
    (tmp_path / "s.toml").write_text(SUITE)

    command = [sys.executable, "-m", "kvbench", "run", "--suite", "s.toml", "--out", "out", "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "length: 9 tokens" in process.stdout and "tokens kept" in process.stdout
    record = json.loads((tmp_path / "out" / "records.jsonl").read_text())
    assert record["length"] == {"tokens": 9} and record["trial"]["workload"]["length"] == {"prompt": 9}
    assert record["status"] == "ok" and "length" in record["trial"]["text_sha256"]
