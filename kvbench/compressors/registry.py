"""Which compressors there are: kvbench's own, and those that installed packages offer by entry point."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import is_dataclass
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points

from kvbench.compressors.part import Part
from kvbench.errors import KvbenchError, PluginError, unknown

ENTRY_POINTS = "kvbench.compressors"

_BUILT_IN = {
    "none": "none:Uncompressed",
    "hf": "hf:StockCache",
    "hf-quanto": "hf_quanto:Quanto",
    "hf-hqq": "hf_hqq:Hqq",
    "identity": "identity:Identity",
    "pca": "pca:Pca",
    "palu": "palu:Palu",
    "svd": "svd:Svd",
    "asvd": "asvd:Asvd",
    "lorc": "lorc:Lorc",
    "eigen": "eigen:Eigen",
    "kqsvd": "kqsvd:KqSvd",
    "recalkv": "recalkv:ReCalKv",
    "rope-commuting": "rope_commuting:RopeCommuting",
    "matryoshka": "matryoshka:Matryoshka",
    "mla": "mla:Mla",
    "latent": "latent:Latent",
    "kvtc": "kvtc:Kvtc",
    "ftc": "ftc:Ftc",
    "shadowkv": "shadowkv:ShadowKv",
    "svdq": "svdq:SvdQ",
    "xkv": "xkv:Xkv",
    "int": "integer:Integer",
    "kivi": "kivi:Kivi",
    "gear": "gear:Gear",
    "fp8": "fp8:Fp8",
    "turboquant": "turboquant:TurboQuant",
    "kvquant": "kvquant:KvQuant",
    "hadamard": "hadamard:Hadamard",
    "streaming": "streaming:Streaming",
    "snapkv": "snapkv:SnapKv",
    "tova": "tova:Tova",
    "knorm": "knorm:KeyNorm",
    "expected-attention": "expected_attention:ExpectedAttention",
    "cast": "cast:Cast",
    "truncate": "truncate:Truncate",
    "random-projection": "random_projection:RandomProjection",
    "random": "random_tokens:RandomTokens",
}


_UNLISTED = {"saved": "saved:Saved"}
"""Reads what `kvbench fit` wrote: no method of its own, and nothing to compare without a folder."""


@cache
def _built_in(name: str) -> type[Part]:
    """Imported one by one: a spec pays only for its own method."""
    module, _, cls = (_BUILT_IN | _UNLISTED)[name].partition(":")
    return getattr(importlib.import_module(f"kvbench.compressors.methods.{module}"), cls)


@lru_cache(maxsize=1)
def _plugins() -> dict[str, EntryPoint]:
    """What installed packages offer, not imported yet: a broken package must not take the others with it."""
    plugins = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    for name in plugins.keys() & (_BUILT_IN | _UNLISTED).keys():
        raise KvbenchError(
            f"plug-in {plugins[name].value!r} takes the name of the built-in compressor {name!r}; rename it"
        )
    return plugins


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
    return [*_BUILT_IN, *sorted(_plugins())]


def plugin_packages() -> set[str]:
    """The top-level packages that installed plug-ins live in."""
    return {point.module.partition(".")[0] for point in _plugins().values()}


def find(name: str) -> type[Part]:
    """The part class called ``name``.

    Raises:
        KvbenchError: no such compressor (lists what exists and the nearest match), or a plug-in that does not load.
    """
    if name in _BUILT_IN or name in _UNLISTED:
        return _built_in(name)
    if name not in _plugins():
        raise unknown("compressor", name, names())
    return _plugin(_plugins()[name])
