"""The words for what attends to a cache while decoding."""

from __future__ import annotations

READS = {
    "exact": "keys and values are floating-point numbers, read where they lie",
    "latents": "the same for latents: queries are taken into them once, outputs brought back once",
    "int": "a kernel multiplies the stored integers; nothing is decoded to memory",
    "levels": "the same for codes that a table turns into 8-bit levels on the way",
    "absorbed": "plain torch decodes latents tile by tile and attends to them: no keys or values are rebuilt",
    "rebuilt": "keys are rebuilt tile by tile, and rotated if they are stored before RoPE; values stay latents",
    "bands": "queries are taken into the latents once a block; keys of fast RoPE pairs are rebuilt tile by tile",
    "decoded": "plain torch decodes keys and values tile by tile, and rotates keys that are stored before RoPE",
}
"""What is read. In front stands who reads: ``numba`` (CPU kernels), ``triton`` (GPU kernels) or ``torch``."""
STOCK = "stock"
"""transformers' own attention on its own cache."""


def explained(attends: str) -> list[str]:
    """The meaning of each of the ways that ``attends`` lists with " | " between."""
    return ["transformers' own attention" if way == STOCK else READS[way.split()[1]] for way in attends.split(" | ")]
