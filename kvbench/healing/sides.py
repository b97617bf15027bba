"""Which sides of a codec are healed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kvbench.codecs.codec import Codec, SideCodec
from kvbench.codecs.transforms.joint import joint_matrix


def healed_sides(codec: Codec) -> dict[str, SideCodec]:
    """The sides of ``codec`` whose bases are healed, by name.

    Not the RoPE slice of a decoupled codec: it commutes with RoPE, as `kvbench convert` needs it, and nearly any change
    would end that.
    """
    fixed = {"keys"} if codec.decoupled else set()
    return {name: side for name, side in codec.sides.items() if side.transform is not None and name not in fixed}


def with_sides(codec: Codec, sides: Mapping[str, SideCodec]) -> Codec:
    """``codec`` with other ``sides``, by name."""
    changes: dict[str, Any] = {**sides}
    return replace(codec, **changes)


def wanted_of(codec: Codec, name: str) -> Tensor | None:
    """The projection (in, in) of states onto what the side ``name`` is to give back; None where that is everything.

    The joint latent of a decoupled codec leaves out what the RoPE slice keeps.
    """
    if not codec.decoupled or name != "values":
        return None
    kept = codec.keys.transform
    assert kept is not None
    encoder, decoder = kept.encoder[0].double(), kept.decoder[0].double()
    rest = torch.eye(len(encoder), dtype=encoder.dtype, device=encoder.device) - encoder @ decoder
    width = codec.values.kv_heads * codec.values.head_dim - len(rest)
    return joint_matrix(rest, torch.eye(width, dtype=rest.dtype, device=rest.device), codec.values.kv_heads)
