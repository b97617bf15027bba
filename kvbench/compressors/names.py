"""The names that compressors have, without importing any: what is misspelt is told before torch is there."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from kvbench.errors import KvbenchError, unknown

ENTRY_POINTS = "kvbench.compressors"

BUILT_IN = {
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


UNLISTED = {"saved": "saved:Saved"}
"""Reads what `kvbench fit` wrote: no method of its own, and nothing to compare without a folder."""


@lru_cache(maxsize=1)
def plugins() -> dict[str, EntryPoint]:
    """What installed packages offer, not imported yet: a broken package must not take the others with it."""
    plugins = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    for name in plugins.keys() & (BUILT_IN | UNLISTED).keys():
        raise KvbenchError(
            f"plug-in {plugins[name].value!r} takes the name of the built-in compressor {name!r}; rename it"
        )
    return plugins


def names() -> list[str]:
    """All compressor names, built-in first."""
    return [*BUILT_IN, *sorted(plugins())]


def refuse_unknown(name: str) -> None:
    """Raises KvbenchError where no compressor is called ``name``: with what exists, and the nearest match."""
    if name not in BUILT_IN and name not in UNLISTED and name not in plugins():
        raise unknown("compressor", name, names())
