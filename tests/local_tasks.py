"""Tasks of lm-evaluation-harness over a local file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HEAD = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
"""
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
GENERATE = """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}]
"""


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """``rows`` as lines of JSON."""
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def write_task(folder: Path, name: str, kind: str, data: Path) -> None:
    """The task ``name`` of one of the kinds above, over the rows in ``data``."""
    (folder / f"{name}.yaml").write_text(_HEAD.format(name=name, data=data) + kind)
