"""Keys, values and codecs at SmolLM2-135M's attention geometry, without a model."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from kvbench.codecs.codec import Codec, SideCodec
from kvbench.codecs.quantizers.base import Quantizer
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.codecs.transforms.linear import LinearTransform

HEADS, KV_HEADS, DIM, LAYERS = 9, 3, 64, 30
SCALING = DIM**-0.5
WIDTHS = (6,) * 8 + (5,) * 8 + (4,) * 8 + (3,) * 16 + (2,) * 8 + (1,) * 8 + (0,) * 8
"""Bits of a head's components, 3 on average, as water-filling gives them."""


@cache
def deviations() -> Tensor:
    """(64,) standard deviations for which these widths are right: a bit more for twice the spread. Mean square 1."""
    spread = torch.tensor([2.0**width for width in WIDTHS])
    return spread / spread.square().mean().sqrt()


@cache
def rotations(seed: int) -> Tensor:
    """(kv heads, 64, 64) random orthonormal bases, a row a component."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(KV_HEADS, DIM, DIM, generator=generator)).Q


def states(batch: int, tokens: int, side: str) -> Tensor:
    """Keys or values (batch, 3, tokens, 64) whose components spread like real ones, with a mean."""
    generator = torch.Generator().manual_seed(_seed(side))
    latents = torch.randn(batch, KV_HEADS, tokens, DIM, generator=generator) * deviations()
    return latents @ rotations(_seed(side)) + 0.1


def query(batch: int) -> Tensor:
    """One query (batch, 9, 1, 64) a row."""
    return torch.randn(batch, HEADS, 1, DIM, generator=torch.Generator().manual_seed(2))


def codecs() -> dict[str, Codec]:
    """The stored forms that are compared, all attended as they are."""
    whole, half = DIM, DIM // 2
    mixed = CodebookQuantizer(WIDTHS, deviations())
    joint = CodebookQuantizer(tuple(_thrice(WIDTHS)), torch.tensor(_thrice(deviations().tolist())))
    return {
        "int8": _codec(IntegerQuantizer(8, 64)),
        "int4": _codec(IntegerQuantizer(4, 64)),
        "int2": _codec(IntegerQuantizer(2, 64)),
        "latents of half rank, int8": _codec(IntegerQuantizer(8, 64), half),
        "latents of half rank, int4": _codec(IntegerQuantizer(4, 64), half),
        "latents of 3 bits, per head": _codec(mixed, whole),
        "latents of 3 bits, joint": _codec(joint, KV_HEADS * whole, joint=True),
    }


def _codec(quantizer: Quantizer, rank: int | None = None, joint: bool = False) -> Codec:
    def one(side: str) -> SideCodec:
        transform = None if rank is None else _joint(side) if joint else _per_head(side, rank)
        return SideCodec(KV_HEADS, DIM, transform, quantizer)

    return Codec(one("keys"), one("values"))


def _per_head(side: str, rank: int) -> LinearTransform:
    basis = rotations(_seed(side))[:, :rank]
    return _orthonormal(basis, torch.full((KV_HEADS, DIM), 0.1))


def _joint(side: str) -> LinearTransform:
    """All heads in one latent of full rank, components by their spread."""
    whole = torch.block_diag(*rotations(_seed(side)))
    order = torch.arange(KV_HEADS * DIM).view(KV_HEADS, DIM).T.flatten()
    basis = whole[order][None]
    return _orthonormal(basis, torch.full((1, KV_HEADS * DIM), 0.1))


def _orthonormal(basis: torch.Tensor, mean: torch.Tensor) -> LinearTransform:
    """As fitted bases are kept: in fp16, encoder and decoder in the same memory."""
    decoder = basis.half().contiguous()
    return LinearTransform(decoder.mT, decoder, mean.half())


def _seed(side: str) -> int:
    return {"keys": 0, "values": 1}[side]


def _thrice(values: object) -> list:
    return [value for value in values for _ in range(KV_HEADS)]  # type: ignore[attr-defined]
