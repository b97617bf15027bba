"""Spec strings taken apart: part classes with the settings written for them, and the exact spans."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from kvbench.cache.spans import ExactDtype, Spans
from kvbench.compressors import names, registry
from kvbench.compressors.outline import convert
from kvbench.compressors.part import Part
from kvbench.errors import KvbenchError

_SPANS: dict[str, Any] = {item.name: ExactDtype if item.name == "exact" else int for item in fields(Spans)}
"""The keys of the exact spans with their types."""
_SHORT = {"fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class WrittenPart:
    """One part as it is written: its name, and its settings as texts; they need not be complete."""

    text: str
    name: str
    settings: dict[str, str]

    @property
    def cls(self) -> type[Part]:
        """Its class, which is imported now, if it is not yet. Raises PluginError where that fails."""
        return registry.find(self.name)


@dataclass(frozen=True)
class Spec:
    """A whole spec as it is written; ``spans`` holds only the keys of :class:`Spans` that were given."""

    text: str
    parts: tuple[WrittenPart, ...]
    spans: dict[str, Any]


def read(text: str) -> Spec:
    """Take ``text`` apart: names, syntax and the exact spans are checked. No code of parts is imported.

    Raises:
        KvbenchError: an unknown name (with the nearest match), unreadable settings, or a span given twice.
    """
    if not text.strip():
        raise KvbenchError(f"empty compressor spec; known: {', '.join(names.names())}")
    if re.search(r"[^ -~]", text):
        raise KvbenchError(f"compressor {text!r} holds characters that no spec has; write name:key=value in one line")
    parts, spans = [], {}
    for part in text.strip().split("+"):
        name, _, rest = part.strip().partition(":")
        settings = _settings(part, rest)
        names.refuse_unknown(name)
        for key in _SPANS:
            if key in settings:
                if key in spans:
                    raise KvbenchError(f"{text}: sets {key} twice; it holds for all parts together")
                value = settings.pop(key)
                spans[key] = convert(f"{name}:{key}", _SHORT.get(value, value), _SPANS[key])
        parts.append(WrittenPart(part.strip(), name, settings))
    return Spec(text, tuple(parts), spans)


def _settings(text: str, rest: str) -> dict[str, str]:
    settings: dict[str, str] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = (piece.strip() for piece in item.partition("="))
        if not equals or not key or not value:
            raise KvbenchError(f"cannot read {item!r} in compressor {text!r}; write name:key=value,key=value")
        if key in settings:
            raise KvbenchError(f"compressor {text!r} sets {key} twice")
        settings[key] = value
    return settings
