"""Options that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

DEFAULT_MODEL = "smollm2-135m-instruct-q4_1"

Json = Annotated[bool, Parameter(name="--json", help="JSON alone on stdout.")]
Results = Annotated[Path, Parameter(help="Results folder, or a .jsonl file of records.")]
Device = Annotated[str, Parameter(help="cpu, cuda, cuda:1, …")]
Dtype = Annotated[str, Parameter(help="float32, bfloat16 or float16.")]
Model = Annotated[str, Parameter(help="Registry name, random:<family>, hub id or local folder.")]
DataDir = Annotated[
    Path | None, Parameter(help="Local copies of the hub's data sets, in folders named as there (openai/gsm8k).")
]
