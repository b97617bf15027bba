"""One attention layer as DeepSeek's: the projections of multi-head latent attention out of those of MHA or GQA.

With the RoPE slice ``a = Aᵀk`` and the latent ``z = Eᵀ([k | v] − μ)`` of a :class:`DecoupledCodec`, keys meet a query q
as ``(R q)·(R A' a) + q·(D_k z)``, and values are ``D_v z + μ_v``, where A' and D decode. Everything is linear in the
layer's input x, so

- ``kv_a_proj_with_mqa`` is ``[Eᵀ W_kv | c | Aᵀ W_k]``, with the constant of :mod:`kvbench.conversion.pinned_norm`;
- ``kv_b_proj`` is ``[D_k | D_v]`` for every query head: heads of a group share those of their KV head;
- a head's query is ``[q | A'ᵀq]``: A' commutes with RoPE (RoRoPE of TransMLA, arXiv 2502.07864), so it may come first;
- ``μ_v`` reaches the output through ``o_proj``, because attention weights sum to 1, and ``μ_k`` adds the same to all
  scores of a query, which the softmax never sees.

DeepSeek divides scores by the root of its own head size: the queries make up for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kvbench.codecs.codec import Codec
from kvbench.codecs.transforms.linear import LinearTransform
from kvbench.codecs.transforms.rope import frequencies_of
from kvbench.conversion.families import PROJECTIONS
from kvbench.conversion.pinned_norm import PinnedNorm, longest_output
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import LayerGeometry


@dataclass(frozen=True)
class Linear:
    """A linear map in fp64 on the CPU: ``weight`` (out, in) and ``bias`` (out,), zeros where there is none."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: nn.Linear) -> Linear:
        """The map of ``layer``."""
        weight = layer.weight.detach().double().cpu()
        return cls(weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double().cpu())

    def encoded(self, transform: LinearTransform) -> Linear:
        """What ``transform``, of one group, makes of the map's output."""
        encoder, mean = transform.encoder[0].double().cpu(), transform.mean[0].double().cpu()
        return Linear(encoder.T @ self.weight, encoder.T @ (self.bias - mean))


@dataclass(frozen=True)
class LatentLayer:
    """What a layer's codec decodes and encodes by: ``rope`` the slice of the keys, ``joint`` the latent of the rest.

    Each has one group of all heads. The pairs of ``rope`` stand in the order of their ``frequencies`` (rope / 2,):
    places in the original model's list of them.
    """

    geometry: LayerGeometry
    rope: LinearTransform
    joint: LinearTransform
    frequencies: tuple[int, ...]

    @classmethod
    def of(cls, geometry: LayerGeometry, codec: Codec) -> LatentLayer:
        """The matrices of ``codec``, a decoupled one without quantizer.

        Raises:
            KvbenchError: its RoPE slice mixes frequencies.
        """
        rope, joint = codec.keys.transform, codec.values.transform
        assert rope is not None and joint is not None
        half = torch.arange(geometry.rotary_dims // 2)
        pairs = torch.stack([half, half + len(half)], 1)
        axes = rope.encoder[0].double().cpu()
        frequencies = frequencies_of(axes, geometry.kv_heads, pairs)
        if bool((frequencies < 0).any()):
            raise KvbenchError(f"the RoPE slice of layer {geometry.layer} mixes frequencies, so no table turns it")
        order = frequencies.argsort(stable=True)
        columns = torch.stack([2 * order, 2 * order + 1], 1).flatten()
        sorted_rope = LinearTransform(
            axes[None, :, columns], rope.decoder[:, columns.to(rope.decoder.device)], rope.mean
        )
        return cls(geometry, sorted_rope, joint, tuple(frequencies[order].tolist()))

    @property
    def rope_decoder(self) -> Tensor:
        """(kv_heads, head_dim, rope)."""
        return self.rope.decoder[0].double().cpu().T.unflatten(0, (self.geometry.kv_heads, -1))

    @property
    def decoders(self) -> tuple[Tensor, Tensor]:
        """Of keys without RoPE (kv_heads, head_dim, r) and of values (kv_heads, value_dim, r)."""
        both = self.joint.decoder[0].double().cpu().T.unflatten(0, (self.geometry.kv_heads, -1))
        keys, values = both.split([self.geometry.head_dim, self.geometry.value_dim], 1)
        return keys, values

    @property
    def value_mean(self) -> Tensor:
        """(kv_heads, value_dim)."""
        return self.joint.mean[0].double().cpu().unflatten(0, (self.geometry.kv_heads, -1))[:, self.geometry.head_dim :]


def converted(module: nn.Module, norm: nn.Module, layer: LatentLayer, dtype: torch.dtype) -> dict[str, Tensor]:
    """DeepSeek's tensors by name, fp64 to be kept in ``dtype``, for attention ``module`` behind RMSNorm ``norm``."""
    query, key, value, output = (Linear.of(getattr(module, name)) for name in PROJECTIONS)
    before: Tensor = norm.weight.detach().double().cpu()  # type: ignore[assignment,operator,union-attr]
    heads = float(module.scaling) * _query_heads(layer)  # type: ignore[arg-type]
    biased = module.q_proj.bias is not None  # type: ignore[union-attr]
    return (
        (_latent_queries(query, heads, before, dtype) if biased else _queries(query, heads))
        | _keys_and_values(key, value, layer, before, dtype)
        | _outputs(output, layer)
    )


def _query_heads(layer: LatentLayer) -> Tensor:
    """What makes [q | A'ᵀq] of every head's query (heads, nope + rope, head_dim), against DeepSeek's own scaling."""
    geometry = layer.geometry
    turned = layer.rope_decoder.repeat_interleave(geometry.group_size, 0).mT  # (heads, rope, head_dim)
    plain = torch.eye(geometry.head_dim, dtype=turned.dtype).expand(geometry.heads, -1, -1)
    heads = torch.cat([plain, turned], 1)
    return math.sqrt(heads.shape[1]) * heads


def _queries(query: Linear, heads: Tensor) -> dict[str, Tensor]:
    """The query projection as one matrix."""
    weight = heads @ query.weight.unflatten(0, (len(heads), -1))
    return {"q_proj.weight": weight.flatten(0, 1)}


def _latent_queries(query: Linear, heads: Tensor, before: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """The query projection in two steps: of DeepSeek's projections of queries only the first takes a bias."""
    pinned = PinnedNorm.of(query.weight, query.bias, longest_output(query.weight, query.bias, before), dtype)
    return {
        "q_a_proj.weight": pinned.weight,
        "q_a_proj.bias": pinned.bias,
        "q_a_layernorm.weight": pinned.norm,
        "q_b_proj.weight": pinned.followed_by(torch.block_diag(*heads)),
    }


def _keys_and_values(
    key: Linear, value: Linear, layer: LatentLayer, before: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The latent and the slice of every token, and what every head makes of the latent."""
    geometry = layer.geometry
    both = Linear(
        *(
            torch.cat([part.unflatten(0, (geometry.kv_heads, -1)) for part in parts], 1).flatten(0, 1)
            for parts in ((key.weight, value.weight), (key.bias, value.bias))
        )
    )
    latent, rope = both.encoded(layer.joint), key.encoded(layer.rope)
    pinned = PinnedNorm.of(latent.weight, latent.bias, longest_output(latent.weight, latent.bias, before), dtype)
    heads = torch.cat(layer.decoders, 1).repeat_interleave(geometry.group_size, 0)
    return {
        "kv_a_proj_with_mqa.weight": torch.cat([pinned.weight, rope.weight]),
        "kv_a_proj_with_mqa.bias": torch.cat([pinned.bias, rope.bias]),
        "kv_a_layernorm.weight": pinned.norm,
        "kv_b_proj.weight": pinned.followed_by(heads.flatten(0, 1)),
    }


def _outputs(output: Linear, layer: LatentLayer) -> dict[str, Tensor]:
    """The output projection, with what the values' mean adds to every token."""
    mean = layer.value_mean.repeat_interleave(layer.geometry.group_size, 0).flatten()
    return {"o_proj.weight": output.weight, "o_proj.bias": output.bias + output.weight @ mean}
