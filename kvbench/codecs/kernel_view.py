"""What kernels see of stored codes: widths, levels and scales, whatever quantizer they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from kvbench.codecs.quantizers.base import Stored

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class BlockAffine:
    """A ``scale`` and a ``zero`` (batch, groups, blocks, rank) fp16 of each component in every block of ``tokens``."""

    tokens: int
    scale: Tensor
    zero: Tensor


@dataclass(frozen=True, eq=False)
class Coded:
    """One stored side: component c, token t is ``component[c] · (scale[t, g] · u + zero[t, g])``, g = c // ``channel``.

    ``codes`` (batch, groups, tokens / 8, bytes) packed by ``widths``; u is the code itself, or its entry in ``levels``
    by width. ``scale`` ≥ 0 and ``zero`` (batch, groups, tokens, channel groups) fp16, None: one and zero. ``component``
    (rank,), None: ones. With ``blocks`` it is scaled once more, by ``blocks.scale[b, c] · … + blocks.zero[b, c]`` with
    b = t // ``blocks.tokens``.
    """

    codes: Tensor
    widths: tuple[int, ...]
    channel: int
    levels: Mapping[int, Tensor] | None = None
    scale: Tensor | None = None
    zero: Tensor | None = None
    component: Tensor | None = None
    blocks: BlockAffine | None = None

    def lies_in(self, stored: Stored) -> bool:
        """Whether codes, scales and zeros are those that are ``stored``, and none of them was made for this view."""
        tensors = [self.codes, self.scale, self.zero]
        if self.blocks is not None:
            tensors += [self.blocks.scale, self.blocks.zero]
        return all(tensor is None or lies_in(tensor, stored) for tensor in tensors)


def lies_in(tensor: Tensor, stored: Stored) -> bool:
    """Whether ``tensor`` is memory of what is ``stored``."""
    storages = {each.untyped_storage().data_ptr() for each in stored.values()}
    return tensor.untyped_storage().data_ptr() in storages


@dataclass(frozen=True, eq=False)
class Same(Generic[Value]):
    """``value`` by identity: a cache key for tensors, which it keeps alive."""

    value: Value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value


LevelTables = tuple[tuple[int, Same[Tensor]], ...]
"""Level tables by width, as a cache key: the same for every mapping that holds the same tables."""


def level_tables(levels: Mapping[int, Tensor]) -> LevelTables:
    """The tables of ``levels``, in order of their widths."""
    return tuple((width, Same(levels[width])) for width in sorted(levels))


@lru_cache(maxsize=1024)
def constant(value: float, rank: int, device: torch.device) -> Tensor:
    """``value`` for each of ``rank`` components (rank,) fp32: the same tensor each time, so that kernels know it."""
    return torch.full((rank,), value, device=device)


def kernel_view(quantizer: object, stored: Stored) -> Coded | Tensor | None:
    """What kernels can read without decoding: codes, latents as they are, or None.

    A quantizer offers it as ``coded(stored)``, which counts only if the same class defines ``decode``: a subclass that
    decodes otherwise inherits a view that is not what it stores.
    """
    owners = [next((cls for cls in type(quantizer).__mro__ if name in vars(cls)), None) for name in ("coded", "decode")]
    if owners[0] is None or owners[0] is not owners[1]:
        return None
    return quantizer.coded(stored)  # type: ignore[attr-defined, no-any-return]
