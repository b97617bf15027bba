"""Parameters counted from a config, by what a decode step does with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvbench.projection.families import Family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Experts:
    """Routed experts: ``count`` in each of ``layers``, ``active`` of them a token, ``size`` parameters each."""

    count: int
    active: int
    size: int
    layers: int

    @property
    def total(self) -> int:
        """Parameters of all of them."""
        return self.layers * self.count * self.size


@dataclass(frozen=True)
class Weights:
    """Parameters of all layers. Tensor parallelism gives every device its share of ``by_heads`` (projections of query
    heads), ``by_kv_heads``, ``mlps`` (dense ones and shared experts), ``embedding`` and ``head``; each has all of
    ``shared`` (the way down into latents), ``routers`` and ``norms``.

    ``head`` is 0 where it is the embedding. Biases count with what they are added to.
    """

    by_heads: int
    by_kv_heads: int
    shared: int
    mlps: int
    routers: int
    norms: int
    embedding: int
    head: int
    experts: Experts | None

    @property
    def total(self) -> int:
        """All parameters."""
        return self._always + self.embedding + self.head + (self.experts.total if self.experts else 0)

    @property
    def active(self) -> int:
        """Parameters that one token is multiplied with: not the embedding, of which it looks up a row."""
        routed = self.experts.layers * self.experts.active * self.experts.size if self.experts else 0
        return self._always + (self.head or self.embedding) + routed

    @property
    def _always(self) -> int:
        return self.by_heads + self.by_kv_heads + self.shared + self.mlps + self.routers + self.norms


def count_weights(config: PreTrainedConfig, family: Family, head_dim: int, value_dim: int) -> Weights:
    """The parameters of a model of this ``config``; ``head_dim`` and ``value_dim`` are those of a query head."""
    layers, hidden = config.num_hidden_layers, config.hidden_size
    by_heads, by_kv_heads, shared, norms = _attention(config, family, head_dim, value_dim)
    sparse = _expert_layers(config) if family.experts else 0
    experts = None
    mlps = (layers - sparse) * _mlp(hidden, config.intermediate_size, _has(config, family.mlp_bias))
    if sparse:
        size = _mlp(hidden, getattr(config, family.expert_width))
        experts = Experts(getattr(config, family.experts), config.num_experts_per_tok, size, sparse)
        mlps += sparse * (getattr(config, "n_shared_experts", 0) or 0) * size
    return Weights(
        layers * by_heads,
        layers * by_kv_heads,
        layers * shared,
        mlps,
        sparse * experts.count * hidden if experts else 0,
        layers * (norms + family.norms * hidden) + hidden,
        config.vocab_size * hidden,
        0 if config.tie_word_embeddings else config.vocab_size * hidden,
        experts,
    )


def _attention(config: PreTrainedConfig, family: Family, head_dim: int, value_dim: int) -> tuple[int, int, int, int]:
    """One layer's parameters by query heads, by KV heads, shared by all heads, and in norms."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    if family.latent:
        return _latent_attention(config, head_dim, value_dim)
    bias, out_bias = _has(config, family.query_bias), _has(config, family.output_bias)
    by_heads = heads * (head_dim * (hidden + bias) + value_dim * hidden) + out_bias * hidden
    by_kv_heads = config.num_key_value_heads * (head_dim + value_dim) * (hidden + bias)
    return by_heads, by_kv_heads, 0, 2 * head_dim * family.head_norms


def _latent_attention(config: PreTrainedConfig, head_dim: int, value_dim: int) -> tuple[int, int, int, int]:
    """MLA (DeepSeek-V2, arXiv 2405.04434, section 2.1): all heads share the way down to the latents of queries, if
    there are any, and of keys and values; every head has its own way up."""
    hidden, heads, rank = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    bias = _has(config, "attention_bias")
    shared, queries_from, norms = (rank + config.qk_rope_head_dim) * (hidden + bias), hidden, rank
    if config.q_lora_rank is not None:
        shared += config.q_lora_rank * (hidden + bias)
        queries_from, norms = config.q_lora_rank, norms + config.q_lora_rank
    up = rank * (config.qk_nope_head_dim + value_dim)
    by_heads = heads * (head_dim * queries_from + up + value_dim * hidden) + bias * hidden
    return by_heads, 0, shared, norms


def _mlp(hidden: int, width: int, bias: int = 0) -> int:
    """A gated MLP: two matrices up and one down."""
    return 3 * hidden * width + bias * (2 * width + hidden)


def _expert_layers(config: PreTrainedConfig) -> int:
    """Layers whose MLP is a mixture of experts."""
    layers = range(config.num_hidden_layers)
    dense_first = getattr(config, "first_k_dense_replace", 0)
    step, dense = getattr(config, "decoder_sparse_step", 1), getattr(config, "mlp_only_layers", None) or ()
    return sum(layer >= dense_first and layer not in dense and (layer + 1) % step == 0 for layer in layers)


def _has(config: PreTrainedConfig, field: str) -> int:
    """1 if there is such a bias, else 0."""
    return int(field == "always" or bool(field and getattr(config, field, False)))
