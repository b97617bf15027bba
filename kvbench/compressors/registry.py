"""Which compressors there are: kvbench's own, and those that installed packages offer by entry point."""

from __future__ import annotations

import importlib
from functools import cache, lru_cache
from importlib.metadata import entry_points

from kvbench.compressors.part import Part
from kvbench.errors import KvbenchError, unknown

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


@cache
def _built_in(name: str) -> type[Part]:
    """Imported one by one: a spec pays only for its own method."""
    module, _, cls = _BUILT_IN[name].partition(":")
    return getattr(importlib.import_module(f"kvbench.compressors.methods.{module}"), cls)


@lru_cache(maxsize=1)
def _plugins() -> dict[str, type[Part]]:
    found: dict[str, type[Part]] = {}
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in _BUILT_IN:
            raise KvbenchError(
                f"plug-in {point.value!r} takes the name of the built-in compressor {point.name!r}; rename it"
            )
        try:
            cls = point.load()
        except Exception as error:
            raise KvbenchError(f"compressor plug-in {point.name!r} ({point.value}) does not load: {error}") from error
        if not (isinstance(cls, type) and issubclass(cls, Part)):
            raise KvbenchError(
                f"compressor plug-in {point.name!r} ({point.value}) is no Part; subclass kvbench.compressors.part.Part"
            )
        if cls.name != point.name:
            raise KvbenchError(
                f"compressor plug-in {point.name!r} ({point.value}) calls itself {cls.name!r}; give both the same name"
            )
        found[point.name] = cls
    return found


def names() -> list[str]:
    """All compressor names, built-in first."""
    return [*_BUILT_IN, *sorted(_plugins())]


def find(name: str) -> type[Part]:
    """The part class called ``name``.

    Raises:
        KvbenchError: no such compressor; lists what exists and the nearest match.
    """
    if name in _BUILT_IN:
        return _built_in(name)
    if name not in _plugins():
        raise unknown("compressor", name, names())
    return _plugins()[name]
