"""One sensible spec for every compressor: what tests that hold for all of them loop over.

A new method needs a row here; a test says so when it is missing.
"""

DEFAULT_SPECS = {
    "none": "none",
    "hf": "hf",
    "hf-quanto": "hf-quanto",
    "hf-hqq": "hf-hqq",
    "identity": "identity:frame=before",
    "pca": "pca:rank=0.5",
    "palu": "palu:rank=0.5,group=2",
    "svd": "svd:rank=0.5",
    "asvd": "asvd:rank=0.5",
    "lorc": "lorc:rank=0.5",
    "eigen": "eigen:rank=0.5",
    "kqsvd": "kqsvd:rank=0.5",
    "recalkv": "recalkv:rank=0.5,group=2",
    "rope-commuting": "rope-commuting:rank=0.5",
    "matryoshka": "matryoshka:rank=0.5",
    "mla": "mla:latent=24,rope_dims=8",
    "latent": "latent:rank=0.5",
    "kvtc": "kvtc:bits=4",
    "ftc": "ftc:bits=4",
    "shadowkv": "shadowkv:rank=0.5",
    "svdq": "svdq:bits=3,group=32",
    "xkv": "xkv:rank=0.5,layers=2",
    "int": "int:bits=4",
    "kivi": "kivi:bits=2",
    "gear": "gear:bits=2,group=32,chunk=32",
    "fp8": "fp8",
    "turboquant": "turboquant:bits=4",
    "kvquant": "kvquant:bits=4",
    "hadamard": "hadamard+int:bits=4",
    "streaming": "streaming",
    "snapkv": "snapkv:budget=0.5",
    "tova": "tova:budget=0.5",
    "knorm": "knorm:budget=0.5",
    "expected-attention": "expected-attention:budget=0.5",
    "cast": "cast:to=fp8",
    "truncate": "truncate:rank=0.5",
    "random-projection": "random-projection:rank=0.5",
    "random": "random:budget=0.5",
}

COMBINED_SPECS = (
    "pca:rank=0.5,heads=each,frame=after+int:bits=8,group=16",
    "palu:rank=0.75+kivi:bits=4",
    "snapkv:budget=0.25+int:bits=8",
    "knorm:budget=0.5+kvtc:bits=3",
    "int:bits=3,side=keys",
    "snapkv:tokens=24,query_aware=true+int:bits=8",
    "tova:tokens=16",
    "pca:rank=0.5+hadamard+int:bits=3",
    "latent:rank=0.5+hadamard+int:bits=4",
    "xkv:rank=0.5,layers=2+hadamard+int:bits=4",
    "kvtc:bits=4,layers=2",
    "knorm:budget=0.5,spared=1+int:bits=8",
    "mla:latent=0.5,rope_dims=8+hadamard+int:bits=4",
)
"""Parts that compose."""

IN_16_BIT = ("none:dtype=float16", "none:dtype=bfloat16")
"""The uncompressed cache in another dtype than the model's."""

CODED_SPECS = ("ftc:bits=4,coder=entropy", "kvtc:bits=4,coder=entropy")
"""Another coder behind a default spec."""

IN_BANDS = ("ftc:bits=4,frame=bands,rope_block=64", "kvtc:bits=4,frame=bands,allocate=fisher")
"""Keys relative to their block."""

ALL_SPECS = (*DEFAULT_SPECS.values(), *COMBINED_SPECS, *CODED_SPECS, *IN_BANDS, *IN_16_BIT)
LOSSLESS = ("none", "hf", "hf-quanto", "hf-hqq", "identity")
"""Transformers' own quantized caches do lose, but not through kvbench's hooks."""
LOSSY_SPECS = tuple(spec for spec in ALL_SPECS if spec.partition(":")[0] not in LOSSLESS)
