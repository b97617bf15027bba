"""Keys, values and codecs at SmolLM2-135M's attention geometry, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from kvbench.cache.block_frame import BlockFrame
from kvbench.codecs.codec import Codec, SideCodec
from kvbench.codecs.frame import BLOCK, Bands
from kvbench.codecs.joint import JointCodec
from kvbench.codecs.quantizers.base import Passthrough, Quantizer
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.codecs.transforms.linear import LinearTransform
from kvbench.hooks.geometry import LayerGeometry
from kvbench.hooks.rotary import EntryRotation, Positions, RotaryTable, Rotator
from kvbench.hooks.rotations import rotation_of
from kvbench.hooks.turns import measured_turn

HEADS, KV_HEADS, DIM, LAYERS = 9, 3, 64, 30
SCALING = DIM**-0.5
WIDTHS = (6,) * 8 + (5,) * 8 + (4,) * 8 + (3,) * 16 + (2,) * 8 + (1,) * 8 + (0,) * 8
"""Bits of a head's components, 3 on average, as water-filling gives them."""
FAST = 24
"""Dimensions of a head that RoPE turns fast."""


def deviations(widths: Sequence[int] = WIDTHS) -> Tensor:
    """Standard deviations for which ``widths`` are right: a bit more for twice the spread. Mean square 1."""
    spread = torch.tensor([2.0**width for width in widths])
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
        "int2, keys per channel": _codec(IntegerQuantizer(2, 32, "token"), values=IntegerQuantizer(2, 32)),
        "latents of half rank, int8": _codec(IntegerQuantizer(8, 64), half),
        "latents of half rank, int4": _codec(IntegerQuantizer(4, 64), half),
        "latents of 3 bits, per head": _codec(mixed, whole),
        "latents of 3 bits, joint": _codec(joint, KV_HEADS * whole, joint=True),
    }


@cache
def before_rope() -> dict[str, Codec]:
    """The stored forms whose keys are rebuilt and rotated while they are read."""
    whole, thrice = KV_HEADS * DIM, _thrice(WIDTHS)
    deviation = torch.tensor(_thrice(deviations().tolist()))
    order = torch.arange(2 * whole).view(2, whole).T.flatten()  # keys' and values' components in turn
    decoder = torch.zeros(2 * whole, KV_HEADS, 2, DIM)
    for place, side in enumerate(("keys", "values")):
        decoder[place * whole : (place + 1) * whole, :, place] = _joint(side).decoder[0].float().view(-1, KV_HEADS, DIM)
    transform = _orthonormal(decoder[order].flatten(1)[None], torch.full((1, 2 * whole), 0.1))
    kept = sum(width > 0 for width in thrice)
    split = {
        side: SideCodec(
            KV_HEADS, DIM, _kept(_joint(side), kept), CodebookQuantizer(tuple(thrice[:kept]), deviation[:kept])
        )
        for side in ("keys", "values")
    }
    both = CodebookQuantizer(
        tuple(torch.tensor(thrice).repeat_interleave(2)[: 2 * kept].tolist()),
        deviation.repeat_interleave(2)[: 2 * kept],
    )
    joint = SideCodec(KV_HEADS, 2 * DIM, _kept(transform, 2 * kept), both)
    keys = SideCodec(KV_HEADS, DIM, None, both)
    half = _per_head("keys", DIM // 2), _per_head("values", DIM // 2)
    plain = [SideCodec(KV_HEADS, DIM, transform, Passthrough(torch.float32)) for transform in half]
    return {
        "keys before RoPE, 3 bits, joint": JointCodec(keys, joint, True),
        "keys before RoPE, 3 bits, split": Codec(split["keys"], split["values"], True),
        "keys before RoPE, half rank, fp32": Codec(plain[0], plain[1], True),
        "keys in bands, 3 bits, joint": _banded(),
    }


def _banded() -> Codec:
    """As ``ftc:frame=bands`` makes it: fast dimensions first, with latents of their own, then the others and values."""
    fast = sorted(range(DIM), key=lambda dim: dim % (DIM // 2))[:FAST]
    bands = Bands(DIM, tuple(sorted(fast)), BLOCK)
    is_fast = torch.zeros(KV_HEADS, 2, DIM, dtype=torch.bool)
    is_fast[:, 0, fast] = True
    parts = [is_fast.flatten().nonzero()[:, 0], (~is_fast).flatten().nonzero()[:, 0]]
    kept = [[width for width in _spread(WIDTHS, len(part)) if width] for part in parts]
    decoder = torch.zeros(1, sum(map(len, kept)), 2 * KV_HEADS * DIM)
    for first, part, widths in zip((0, len(kept[0])), parts, kept, strict=True):
        generator = torch.Generator().manual_seed(len(part))
        basis = torch.linalg.qr(torch.randn(len(part), len(part), generator=generator)).Q
        decoder[0, first : first + len(widths), part] = basis[: len(widths)]
    quantizer = CodebookQuantizer(tuple(kept[0] + kept[1]), deviations(kept[0] + kept[1]))
    transform = _orthonormal(decoder, torch.full((1, 2 * KV_HEADS * DIM), 0.1))
    joint = SideCodec(KV_HEADS, 2 * DIM, transform, quantizer, leading=len(kept[0]))
    return JointCodec(SideCodec(KV_HEADS, DIM, None, quantizer), joint, True, bands)


def _spread(widths: tuple[int, ...], count: int) -> list[int]:
    """``count`` widths, falling, that are distributed as ``widths`` are."""
    return [widths[index * len(widths) // count] for index in range(count)]


def rotation(tokens: int, bands: Bands | None = None) -> EntryRotation:
    """Llama's rotation of ``tokens`` entries at positions 0, 1, 2, … that are stored before RoPE, or in ``bands``."""
    config = LlamaConfig(hidden_size=HEADS * DIM, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS)
    module, positions, table = LlamaAttention(config, 0), torch.arange(tokens)[None], RotaryTable()
    table.fill(positions, LlamaRotaryEmbedding(config)(torch.zeros(1), positions))
    index = Positions()
    index.extend(0, positions)
    turn = measured_turn(rotation_of(module), DIM)
    geometry = LayerGeometry(0, HEADS, KV_HEADS, DIM, DIM, DIM, 0, None, turn)
    return BlockFrame(Rotator(module, geometry, table, index), bands).rotation(0, tokens, None)


def _kept(transform: LinearTransform, rank: int) -> LinearTransform:
    """The first components only, as water-filling drops the others."""
    decoder = transform.decoder[:, :rank].contiguous()
    return LinearTransform(decoder.mT, decoder, transform.mean)


def _codec(keys: Quantizer, rank: int | None = None, joint: bool = False, values: Quantizer | None = None) -> Codec:
    """``values`` are quantized as ``keys`` are if they have no quantizer of their own."""

    def one(side: str, quantizer: Quantizer) -> SideCodec:
        transform = None if rank is None else _joint(side) if joint else _per_head(side, rank)
        return SideCodec(KV_HEADS, DIM, transform, quantizer)

    return Codec(one("keys", keys), one("values", values or keys))


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
