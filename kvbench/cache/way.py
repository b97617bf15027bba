"""What attends to stored tokens: decided here, for the decode step that runs and for predictions before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.codecs.codec import Codec
from kvbench.codecs.kernel_view import Coded, kernel_view
from kvbench.codecs.quantizers.base import Stored
from kvbench.codecs.stored import side
from kvbench.kernels.choice import Kernels
from kvbench.kernels.decode import kernels_taking
from kvbench.kernels.reading import Reading

READS = {
    "exact": "keys and values are numbers of the model's dtype, read where they lie",
    "latents": "the same for latents: queries are taken into them once, outputs brought back once",
    "int": "a kernel multiplies the stored integers; nothing is decoded to memory",
    "levels": "the same for codes that a table turns into 8-bit levels on the way",
    "absorbed": "plain torch decodes latents tile by tile and attends to them: no keys or values are rebuilt",
    "rebuilt": "plain torch rebuilds keys and values tile by tile, and rotates keys that are stored before RoPE",
}
"""What is read. In front stands who reads: ``numba`` (CPU kernels), ``triton`` (GPU kernels) or ``torch``."""
STOCK = "stock"
"""transformers' own attention on its own cache."""


@dataclass(frozen=True, eq=False)
class Way:
    """``reads`` (a key of :data:`READS`) by ``kernels``, None for plain torch.

    ``keys`` and ``values`` are what a kernel is given: codes by their kernel_view, or latents.
    """

    kernels: Kernels | None
    reads: str
    keys: Coded | Tensor | None = None
    values: Coded | Tensor | None = None

    def __str__(self) -> str:
        return f"{'torch' if self.kernels is None else self.kernels.name} {self.reads}"

    @property
    def in_latents(self) -> bool:
        """Whether scores and sums are taken over what is stored, without rebuilding keys and values."""
        return self.reads != "rebuilt"


REBUILT = Way(None, "rebuilt")


def way(
    codec: Codec, stored: Stored, query: tuple[torch.dtype, torch.device], rotates: bool, fast: bool, reading: Reading
) -> Way:
    """How ``stored``, encoded by ``codec``, is read by one new token's ``query``, of this dtype on this device.

    Args:
        codec: bound to the sequence, if it is fitted to each.
        stored: any of its tokens.
        query: dtype and device of the queries.
        rotates: whether keys are rotated by RoPE when they are read.
        fast: False where neither a kernel nor the latents will do: several new tokens at once, or capped scores.
        reading: what the caller allows.
    """
    if rotates or not fast or not codec.absorbable or not reading.absorbs:
        return REBUILT
    transformed = any(side_codec.transform is not None for side_codec in codec.sides.values())
    in_torch = Way(None, "absorbed") if transformed else REBUILT
    keys, values = (kernel_view(side_codec.quantizer, side(stored, name)) for name, side_codec in codec.sides.items())
    dtype, device = query
    if codec.keys.transform is not None:
        dtype = codec.keys.transform.dtype  # queries are multiplied with the basis first
    kernels = kernels_taking(dtype, device) if reading.kernels else None
    if isinstance(keys, Tensor) and isinstance(values, Tensor):
        plain = kernels if keys.dtype == values.dtype == dtype else None
        return Way(plain, "latents" if transformed else "exact", keys, values)
    if kernels is None or not isinstance(keys, Coded) or not isinstance(values, Coded):
        return in_torch
    if not (kernels.readable(keys) and kernels.readable(values)):
        return in_torch
    looked_up = keys.levels is not None or values.levels is not None
    return Way(kernels, "levels" if looked_up else "int", keys, values)
