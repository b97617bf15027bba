"""What attends to stored tokens: decided here, for the decode step that runs and for predictions before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.codecs.codec import Codec
from kvbench.codecs.kernel_view import Coded, kernel_view
from kvbench.codecs.quantizers.base import Stored
from kvbench.codecs.stored import side
from kvbench.hooks.turns import Turn
from kvbench.kernels.choice import Kernels
from kvbench.kernels.decode import kernels_taking
from kvbench.kernels.reading import Reading


@dataclass(frozen=True, eq=False)
class Way:
    """``reads`` (a key of :data:`kvbench.cache.reads.READS`) by ``kernels``, None for plain torch.

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
        """Whether scores and sums are taken over what is stored, without rebuilding keys or values."""
        return self.reads not in ("rebuilt", "bands", "decoded")


REBUILT, DECODED = Way(None, "rebuilt"), Way(None, "decoded")
ABSORBED = Way(None, "absorbed")


def way(
    codec: Codec,
    stored: Stored,
    query: tuple[torch.dtype, torch.device],
    rotation: Turn | bool,
    fast: bool,
    reading: Reading,
) -> Way:
    """How ``stored``, encoded by ``codec``, is read by one new token's ``query``, of this dtype on this device.

    Args:
        codec: bound to the sequence, if it is fitted to each.
        stored: any of its tokens.
        query: dtype and device of the queries.
        rotation: how keys are rotated by RoPE when they are read; False if they are not, True if kernels cannot.
        fast: False where neither a kernel nor the latents will do: several new tokens at once, or capped scores.
        reading: what the caller allows.
    """
    dtype, device = query
    if codec.decoupled and fast and reading.absorbs:
        kernels = kernels_taking(dtype, device) if reading.kernels and rotation is not True else None
        return _decoupled(kernels, _view(codec, stored, "rope"), _view(codec, stored, "values"), False) or DECODED
    if not fast or not codec.rebuildable or not reading.absorbs:
        return DECODED
    keys, values = (_view(codec, stored, name) for name in ("keys", "values"))
    if rotation or not codec.absorbable:
        kernels = kernels_taking(dtype, device) if reading.kernels and rotation is not True else None
        return _rebuilding(kernels, keys, values, 0 if codec.bands is None else codec.bands.block)
    dtype = codec.latents["keys"].dtype or dtype  # queries are multiplied with the basis first
    kernels = kernels_taking(dtype, device) if reading.kernels else None
    return _absorbing(codec, kernels, keys, values)


def latent_way(
    codec: Codec, stored: Stored, query: tuple[torch.dtype, torch.device], rotation: Turn | bool, reading: Reading
) -> Way:
    """:func:`way` for the RoPE keys and latents of multi-head latent attention, by one query in the latents."""
    keys, values = (_view(codec, stored, name) for name in ("keys", "values"))
    kernels = kernels_taking(*query) if reading.kernels else None
    if isinstance(keys, Tensor) and isinstance(values, Tensor):
        if rotation or any(side_codec.transform is not None for side_codec in codec.sides.values()):
            return ABSORBED
        plain = kernels is not None and kernels.takes(keys.shape[-1] + values.shape[-1], keys.dtype, values.dtype)
        return Way(kernels if plain else None, "latents", keys, values)
    if rotation is True or codec.bands is not None:
        return ABSORBED
    plain = not rotation and codec.keys.transform is None
    return _decoupled(kernels, keys, values, plain) or ABSORBED


def _view(codec: Codec, stored: Stored, name: str) -> Coded | Tensor | None:
    latents = codec.latents[name]
    return kernel_view(latents.side.quantizer, side(stored, latents.name))


def _rebuilding(kernels: Kernels | None, keys: Coded | Tensor | None, values: Coded | Tensor | None, block: int) -> Way:
    """Keys are rebuilt: by a kernel if it can read both sides. In bands, relative to every ``block``, but a few are."""
    if kernels is None or kernels.rebuilds is None:
        return REBUILT
    if not isinstance(keys, Coded) or not isinstance(values, Coded):
        return REBUILT
    readable = kernels.readable(keys, values) and kernels.rebuilds(keys, block)
    alike = keys.codes.shape[1] == values.codes.shape[1]
    if not (readable and alike):
        return REBUILT
    return Way(kernels, "bands" if block else "rebuilt", keys, values)


def _decoupled(
    kernels: Kernels | None, rope: Coded | Tensor | None, latent: Coded | Tensor | None, plain: bool
) -> Way | None:
    """RoPE keys and latents stay as they are stored, if a kernel can read both; ``plain`` RoPE keys may be floats."""
    if kernels is None or not kernels.decouples or kernels.rebuilds is None or not isinstance(latent, Coded):
        return None
    if isinstance(rope, Tensor):
        readable = plain and kernels.takes(rope.shape[-1], rope.dtype) and kernels.readable(latent, latent)
        return _codes(kernels, rope, latent) if readable else None
    if rope is None or rope.codes.shape[1] != latent.codes.shape[1]:
        return None
    return _codes(kernels, rope, latent) if kernels.readable(rope, latent) and kernels.rebuilds(rope, 0) else None


def _codes(kernels: Kernels, keys: Coded | Tensor, values: Coded) -> Way:
    looked_up = any(isinstance(side, Coded) and side.levels is not None for side in (keys, values))
    return Way(kernels, "levels" if looked_up else "int", keys, values)


def _absorbing(
    codec: Codec, kernels: Kernels | None, keys: Coded | Tensor | None, values: Coded | Tensor | None
) -> Way:
    """Keys and values stay as they are stored."""
    transformed = any(side_codec.transform is not None for side_codec in codec.sides.values())
    in_torch = Way(None, "absorbed") if transformed else DECODED
    if isinstance(keys, Tensor) and isinstance(values, Tensor):
        plain = kernels is not None and kernels.takes(keys.shape[-1], keys.dtype, values.dtype)
        return Way(kernels if plain else None, "latents" if transformed else "exact", keys, values)
    if kernels is None or not isinstance(keys, Coded) or not isinstance(values, Coded):
        return in_torch
    if not kernels.readable(keys, values):
        return in_torch
    return _codes(kernels, keys, values)
