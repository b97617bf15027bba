"""What kvbench's own compressors say of themselves, written down: a spec is checked and explained without torch.

``catalogue.json`` is made from their classes, and a test holds it to them (``tests/cli/test_catalogue.py``). Only what
comes first reads it: a spec that measures is parsed by the classes themselves (:mod:`kvbench.compressors.compressor`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kvbench.cache.spans import Spans
from kvbench.compressors.composition import check_roles, joined, order, spans_of
from kvbench.compressors.outline import Outline
from kvbench.compressors.spec import read

FILE = Path(__file__).with_name("catalogue.json")


@dataclass(frozen=True)
class Entry:
    """``example`` is a spec of the part alone; it is ``attends`` that reads its cache (:mod:`kvbench.cache.reads`)."""

    outline: Outline
    example: str
    attends: str


@dataclass(frozen=True)
class Sketch:
    """A spec in the order of its parts, each with the values of all its settings. ``str`` is the canonical spec."""

    parts: tuple[tuple[Outline, Mapping[str, Any]], ...]
    spans: Spans

    def __str__(self) -> str:
        return joined([outline.text(values) for outline, values in self.parts], self.spans, Spans())


@cache
def catalogue() -> dict[str, Entry]:
    """All compressors that come with kvbench, by name."""
    return {
        stored["name"]: Entry(Outline.from_json(stored), stored["example"], stored["attends"])
        for stored in json.loads(FILE.read_text("utf-8"))
    }


def sketch(spec: str) -> Sketch | None:
    """What :func:`kvbench.compressors.compressor.parse` makes of ``spec``, without code of its parts.

    None where only that code can tell: a compressor of another package, or a saved plan.

    Raises:
        KvbenchError: as ``parse``.
    """
    written = read(spec)
    known = catalogue()
    if any(part.name not in known for part in written.parts):
        return None
    parts = []
    for part in written.parts:
        outline = known[part.name].outline
        values = outline.values(part.settings)
        outline.check(values)
        parts.append((outline, values))
    check_roles([outline for outline, _ in parts], written.spans)
    parts.sort(key=lambda part: order(part[0].roles))
    return Sketch(tuple(parts), spans_of(spec, Spans(), written.spans))


def refuse_wrong(*specs: str) -> None:
    """Raises KvbenchError where one of ``specs`` is wrong, as far as that can be told without torch."""
    for spec in specs:
        sketch(spec)


def refuse_wrong_keys(method: str) -> None:
    """The same for a spec that need not be complete: names, keys and kinds of values."""
    known = catalogue()
    for part in read(method).parts:
        if part.name in known:
            known[part.name].outline.given(part.settings)
