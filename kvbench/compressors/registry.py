"""Which compressors there are: kvbench's own, and those that installed packages offer by entry point."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import is_dataclass
from functools import cache
from importlib.metadata import EntryPoint

from kvbench.compressors import names as listed
from kvbench.compressors.names import BUILT_IN, UNLISTED
from kvbench.compressors.part import Part
from kvbench.errors import PluginError


@cache
def _built_in(name: str) -> type[Part]:
    """Imported one by one: a spec pays only for its own method."""
    module, _, cls = (BUILT_IN | UNLISTED)[name].partition(":")
    return getattr(importlib.import_module(f"kvbench.compressors.methods.{module}"), cls)


@cache
def _plugin(point: EntryPoint) -> type[Part]:
    where = f"compressor plug-in {point.name!r} ({point.value})"
    try:
        cls = point.load()
    except Exception as error:  # a plug-in may do anything while it is imported
        raise PluginError(f"{where} does not load: {type(error).__name__}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Part)):
        raise PluginError(f"{where} is no Part; subclass kvbench.compressors.part.Part")
    if getattr(cls, "name", None) != point.name:
        raise PluginError(f"{where} calls itself {getattr(cls, 'name', None)!r}; give both the same name")
    missing = [name for name in ("family", "roles") if not hasattr(cls, name)]
    if missing or not is_dataclass(cls) or inspect.isabstract(cls):
        lacks = f"has no {missing[0]}" if missing else "has no apply() or is no dataclass"
        raise PluginError(f"{where} {lacks}; see kvbench.compressors.part.Part")
    return cls


def names() -> list[str]:
    """All compressor names, built-in first."""
    return listed.names()


def plugin_packages() -> set[str]:
    """The top-level packages that installed plug-ins live in."""
    return {point.module.partition(".")[0] for point in listed.plugins().values()}


def find(name: str) -> type[Part]:
    """The part class called ``name``.

    Raises:
        KvbenchError: no such compressor (lists what exists and the nearest match), or a plug-in that does not load.
    """
    if name in BUILT_IN or name in UNLISTED:
        return _built_in(name)
    listed.refuse_unknown(name)
    return _plugin(listed.plugins()[name])
