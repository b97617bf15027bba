"""How parts stand together in one spec: in which order, which of them exclude each other, and the text of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, get_args

from kvbench.cache.spans import Spans
from kvbench.compressors.outline import Outline
from kvbench.compressors.part import Role
from kvbench.errors import KvbenchError

_ROLES = get_args(Role)


def order(roles: Sequence[str]) -> int:
    """What is kept, in which coordinates, with how many bits: the order in which parts stand and are applied."""
    return min(map(_ROLES.index, roles))


def check_roles(parts: Sequence[Outline], spans: Mapping[str, Any]) -> None:
    """Every role is brought once, and a baseline stands alone; ``spans`` are those that the spec gives.

    Raises:
        KvbenchError: parts that exclude each other.
    """
    taken: dict[str, str] = {}
    for part in parts:
        if part.roles == ("baseline",) and (len(parts) > 1 or spans):
            raise KvbenchError(f"{part.name} is a baseline: it takes no other part and no spans")
        for role in _ROLES[order(part.roles) : max(map(_ROLES.index, part.roles)) + 1]:
            if role in taken:
                raise KvbenchError(f"{taken[role]} and {part.name} both bring a {role}; keep one of them")
            taken[role] = part.name


def spans_of(text: str, default: Spans, given: Mapping[str, Any]) -> Spans:
    """The exact spans of the spec ``text``: ``default`` but for those that are ``given``.

    Raises:
        KvbenchError: they are too small.
    """
    spans = replace(default, **given)
    if spans.sinks < 0 or spans.recent < 0 or spans.block < 1:
        raise KvbenchError(f"{text}: sinks and recent must be at least 0, block at least 1 (tokens)")
    return spans


def joined(parts: Sequence[str], spans: Spans, default: Spans) -> str:
    """The canonical text of a spec: its ``parts``, and what of the ``spans`` differs from the ``default``."""
    extra = [
        f"{name}={getattr(spans, name)}"
        for name in (item.name for item in fields(Spans))
        if getattr(spans, name) != getattr(default, name)
    ]
    first, *rest = parts
    if extra:
        first += ("," if ":" in first else ":") + ",".join(extra)
    return "+".join([first, *rest])
