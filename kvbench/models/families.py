"""What kvbench makes of every decoder family of transformers, as it was tried on a tiny random model of each.

``tests/families/survey.py`` writes ``families.json``, and its test holds the file to the code, so reading it is enough.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("families.json")


@dataclass(frozen=True)
class FamilyVerdict:
    """``refused``: in a few words, why no cache can be attached; empty where one can.

    ``compressed`` and ``kept`` name the kinds of layers whose cache is compressed, and stays as it is. ``before_rope``
    is "yes" where compressed layers may store keys before RoPE, or says why not.
    """

    refused: str = ""
    compressed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    before_rope: str = ""


@cache
def surveyed() -> tuple[str, dict[str, FamilyVerdict]]:
    """The version of transformers that was surveyed, and its families by name."""
    read = json.loads(FILE.read_text("utf-8"))
    return read["transformers"], {name: _verdict(stored) for name, stored in read["families"].items()}


def _verdict(stored: dict[str, Any]) -> FamilyVerdict:
    lists = {key: tuple(stored.get(key, ())) for key in ("compressed", "kept")}
    return FamilyVerdict(**stored | lists)
