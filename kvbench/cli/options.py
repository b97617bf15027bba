"""Options that several verbs take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

DEFAULT_MODEL = "smollm2-135m-instruct-q4_1"


def _whole_number(kind: Any, tokens: Sequence[Token]) -> int:
    """Plain digits alone: 1.5 is not 1, and 1_0 is not 10."""
    text = tokens[0].value
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise ValueError(f"{text!r} is not a whole number of at most nine digits")
    return int(text)


Whole = Annotated[int, Parameter(converter=_whole_number)]
Json = Annotated[bool, Parameter(name="--json", help="JSON alone on stdout.")]
Results = Annotated[Path, Parameter(help="Results folder, or a .jsonl file of records.")]
Device = Annotated[str, Parameter(help="cpu, cuda, cuda:1, …")]
Dtype = Annotated[str, Parameter(help="float32, bfloat16 or float16.")]
Model = Annotated[str, Parameter(help="Registry name, random:<family>, hub id or local folder.")]
DataDir = Annotated[
    Path | None, Parameter(help="Local copies of the hub's data sets, in folders named as there (openai/gsm8k).")
]
