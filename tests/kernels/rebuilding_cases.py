"""Keys stored before RoPE in all forms, and what they are in fp64: for the kernels of every device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.codecs.quantizers.base import Quantizer
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.hooks.turns import Rotary, Turn

SCALING, RANK, POSITIONS = 0.125, 96, 1200
WIDTHS = (8,) * 4 + (6,) * 20 + (4,) * 24 + (3,) * 16 + (2,) * 16 + (1,) * 16
CODEBOOK = CodebookQuantizer(WIDTHS, torch.linspace(2.0, 0.1, RANK))


@dataclass(frozen=True)
class Case:
    """``heads`` KV heads in ``groups``, each with ``queries``; the first ``rotary`` of ``dim`` dimensions rotate."""

    keys: Quantizer = CODEBOOK
    values: Quantizer | None = None
    batch: int = 2
    tokens: int = 200
    groups: int = 1
    heads: int = 3
    queries: int = 3
    dim: int = 64
    rotary: int = 64
    interleaved: bool = False
    factor: float = 1.0
    masked: str = "none"


def turn(case: Case) -> Turn:
    half, dims = case.rotary // 2, range(case.rotary)
    if case.interleaved:
        return Turn(tuple(i ^ 1 for i in dims), tuple(1.0 if i % 2 else -1.0 for i in dims))
    return Turn(tuple((i + half) % case.rotary for i in dims), tuple(-1.0 if i < half else 1.0 for i in dims))


def table(case: Case) -> tuple[Tensor, Tensor]:
    """cos and sin (positions, rotary dims)."""
    angles = torch.arange(POSITIONS)[:, None] * 50.0 ** -torch.linspace(0, 1, case.rotary // 2)
    angles = angles.repeat_interleave(2, -1) if case.interleaved else torch.cat([angles, angles], -1)
    return angles.cos() * case.factor, angles.sin() * case.factor


def counted(case: Case) -> Tensor:
    """Positions that count up from another start in each row."""
    return torch.arange(case.tokens, dtype=torch.int32)[None, None] + 7 * torch.arange(case.batch).view(-1, 1, 1).int()


def expanded(latents: Tensor, decoder: Tensor, mean: Tensor) -> Tensor:
    """Latents (batch, groups, tokens, rank) → states (batch, heads, tokens, head_dim) in fp64."""
    grouped = torch.einsum("bgtr,grhd->bghtd", latents.double(), decoder.double()) + mean.double().unsqueeze(-2)
    return grouped.flatten(1, 2)


def rotated(keys: Tensor, case: Case, rotary: Rotary) -> Tensor:
    """``keys`` (batch, heads, tokens, head_dim) turned to their positions in fp64."""
    index = rotary.positions.long().clamp(0)
    index = index.expand(case.batch, case.groups, -1).repeat_interleave(case.heads // case.groups, 1)
    first, rest = keys[..., : case.rotary], keys[..., case.rotary :]
    partners, signs = list(rotary.turn.partners), torch.tensor(rotary.turn.signs).double()
    turned = first * rotary.cos.double()[index] + signs * first[..., partners] * rotary.sin.double()[index]
    return torch.cat([turned, rest], -1)


def random_mask(case: Case) -> Tensor | None:
    """None, one mask for all groups, or one for each."""
    if case.masked == "none":
        return None
    mask = torch.rand(case.batch, case.groups if case.masked == "each" else 1, 1, case.tokens) > 0.4
    mask[..., 0] = True
    return mask


def by_head(mask: Tensor | None, case: Case) -> Tensor | None:
    """A mask by groups, by heads."""
    return None if mask is None else mask.repeat_interleave(case.heads // mask.shape[1], 1)
