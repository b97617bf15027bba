"""A model as its config describes it: attention, and how many parameters lie where."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvbench.errors import KvbenchError, UnsupportedModelError
from kvbench.projection.families import FAMILIES, Family
from kvbench.projection.weights import Weights, count_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): per token ``rank`` channels that keys without RoPE
    (``nope`` a head) and values are linear in, and ``rope`` channels of one rotated key for all heads.
    """

    rank: int
    rope: int
    nope: int

    @property
    def width(self) -> int:
        """Channels that a token adds to a layer's cache."""
        return self.rank + self.rope


@dataclass(frozen=True)
class Shape:
    """A decoder. ``windows`` has one entry per layer: a sliding window in tokens, or None for full attention.

    ``kv_heads``, ``head_dim`` (of keys) and ``value_dim`` are those that attention computes with: with a ``latent``
    every query head has its own keys and values.
    """

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    windows: tuple[int | None, ...]
    context: int
    latent: Latent | None
    weights: Weights
    config: PreTrainedConfig = field(compare=False)

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.windows)


def shape_of(name: str, config: PreTrainedConfig) -> Shape:
    """The shape of a model with this ``config``, by its family's rules (:data:`FAMILIES`).

    Raises:
        UnsupportedModelError: no decoder, or of a family whose parameters kvbench cannot count.
        KvbenchError: the config lacks a field or contradicts itself.
    """
    text = config.get_text_config(decoder=True)
    kind = text.model_type
    if kind not in FAMILIES:
        raise UnsupportedModelError(
            f"{name}: model type {kind!r} is no decoder whose parameters are counted here; known: "
            f"{', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[kind]
    heads = _count(name, text, "num_attention_heads")
    latent = _latent(name, text) if family.latent else None
    if latent is None:
        kv_heads = _count(name, text, "num_key_value_heads")
        head_dim = value_dim = getattr(text, "head_dim", None) or _count(name, text, "hidden_size") // heads
    else:
        kv_heads, head_dim, value_dim = heads, latent.nope + latent.rope, _count(name, text, "v_head_dim")
    if heads % kv_heads:
        raise KvbenchError(f"{name}: {heads} query heads cannot share {kv_heads} KV heads evenly")
    _check_experts(name, text, family)
    return Shape(
        name=name,
        hidden=_count(name, text, "hidden_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        windows=_windows(text, _count(name, text, "num_hidden_layers")),
        context=_count(name, text, "max_position_embeddings"),
        latent=latent,
        weights=count_weights(text, family, head_dim, value_dim),
        config=text,
    )


def _latent(name: str, config: PreTrainedConfig) -> Latent:
    """The ranks of MLA.

    Raises:
        KvbenchError: one of them is missing.
    """
    fields = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim")
    return Latent(*(_count(name, config, field) for field in fields))


def _count(name: str, config: PreTrainedConfig, field: str) -> int:
    value: Any = getattr(config, field, None)
    if not isinstance(value, int) or value < 1:
        raise KvbenchError(f"{name}: its config gives {field} as {value!r}; a number above 0 is needed")
    return value


def _check_experts(name: str, config: PreTrainedConfig, family: Family) -> None:
    if family.experts:
        routed, active = _count(name, config, family.experts), _count(name, config, "num_experts_per_tok")
        if active > routed:
            raise KvbenchError(f"{name}: {active} experts a token, but there are {routed}")


def _windows(config: PreTrainedConfig, layers: int) -> tuple[int | None, ...]:
    """Every layer's sliding window, by ``layer_types``, or the same for all where the config has none."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return (window,) * layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
