"""Multi-head latent attention (MLA): one latent per token for all heads, and one key that carries the position.

In DeepSeek-V2 (arXiv 2405.04434, section 2.1), DeepSeek-V3 (arXiv 2412.19437) and their relatives a head's key is
``[k_pe | W_UK c]`` and its value ``W_UV c``; the normalised latent ``c`` and the RoPE key ``k_pe`` are the same for all
heads. transformers caches ``c`` and ``k_pe`` and calls the layer's ``expand_kv`` on all of them at every step.
While kvbench is attached, a :class:`LatentAttention` stands in for that method and hands through what is stored: **one
KV head whose keys are k_pe and whose values are c**. Queries meet it in either of two forms:

- *expanded*: keys and values of every head are made from the latents, as in the stock model;
- *absorbed*: with ``q·W_UK c = (W_UKᵀ q)·c`` queries are taken into the latents, where keys are ``[k_pe | c]`` and
  values ``c``, and ``W_UV`` is applied once to the sum: ``Σ p W_UV c = W_UV Σ p c``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kvbench.errors import UnsupportedModelError
from kvbench.hooks.implementation import IMPLEMENTATION

_SIZES = ("num_heads", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")


class LatentAttention:
    """The projections of one attention ``module``, and what is called in place of its ``expand_kv``.

    Raises:
        UnsupportedModelError: the module lacks a size, or projects by something else than a plain linear layer.
    """

    def __init__(self, module: nn.Module) -> None:
        name = type(module).__name__
        missing = [size for size in _SIZES if not isinstance(getattr(module, size, None), int)]
        if missing:
            raise UnsupportedModelError(f"{name}: multi-head latent attention without {', '.join(missing)}")
        self.module, self.expand_kv = module, module.expand_kv
        self._users: set[int] = set()
        self.heads, self.rank, self.rope, self.nope, self.value = (int(getattr(module, size)) for size in _SIZES)
        projection, width = getattr(module, "kv_b_proj", None), self.heads * (self.nope + self.value)
        if (
            type(projection) is not nn.Linear
            or projection.bias is not None
            or projection.weight.shape != (width, self.rank)
        ):
            raise UnsupportedModelError(
                f"{name}: kv_b_proj, a {type(projection).__name__}, is no plain linear layer without bias from "
                f"kv_lora_rank={self.rank} to {width} channels, so queries cannot be taken through it"
            )

    def stand_in(self, user: object) -> None:
        """Be called in place of the module's method, until all users have called :meth:`step_back`."""
        self._users.add(id(user))
        self.module.expand_kv = self  # type: ignore[assignment]

    def step_back(self, user: object) -> None:
        """``user`` is done; the last one leaves the module as the first found it."""
        self._users.discard(id(user))
        if not self._users:
            del self.module.expand_kv

    def __call__(self, latents: Tensor, rope_keys: Tensor) -> tuple[Tensor, Tensor]:
        """What model code takes for expanded keys and values: those that are stored, in kvbench's order.

        Expanded all the same where another attention function was set meanwhile.
        """
        if self.module.config._attn_implementation != IMPLEMENTATION:  # type: ignore[union-attr]
            return self.stock(rope_keys, latents)
        return rope_keys, latents

    def stock(self, rope_keys: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values by the model's own ``expand_kv``."""
        return self.expand_kv(latents, rope_keys)  # type: ignore[no-any-return,operator]

    def absorbs(self, queries: int, tokens: int) -> bool:
        """Whether attention of ``queries`` new tokens over ``tokens`` takes fewer multiplications absorbed.

        Absorbed, every query goes through W_UK and every sum through W_UV, and scores and sums are ``rope + rank`` and
        ``rank`` wide; expanded, every cached token goes through both, and they are ``rope + nope`` and ``value`` wide.
        So decoding is absorbed and a prompt expanded; in between, with the sizes of DeepSeek-V3, a chunk of up to 170
        tokens on top of a long context is absorbed too.
        """
        projection = self.heads * self.rank * (self.nope + self.value)
        absorbed = queries * (projection + self.heads * tokens * (self.rope + 2 * self.rank))
        expanded = tokens * (projection + self.heads * queries * (self.rope + self.nope + self.value))
        return absorbed < expanded

    def in_order(self, query: Tensor) -> Tensor:
        """The model's queries (batch, heads, tokens, nope + rope) with the rotated dimensions first, as keys are."""
        return torch.cat([query[..., self.nope :], query[..., : self.nope]], -1)

    def absorb(self, query: Tensor) -> Tensor:
        """Queries (batch, heads, tokens, rope + nope) → (batch, heads, tokens, rope + rank)."""
        rope, nope = query.split([self.rope, self.nope], -1)
        return torch.cat([rope, torch.einsum("bhqd,hdr->bhqr", nope, self._projection[:, : self.nope])], -1)

    def release(self, sums: Tensor) -> Tensor:
        """Sums of latents (batch, heads, tokens, rank) → the heads' outputs (batch, heads, tokens, value)."""
        projection = self._projection[:, self.nope :]
        return torch.einsum("bhqr,hvr->bhqv", sums.to(projection.dtype), projection)

    def gram(self, grams: Tensor) -> Tensor:
        """Quadratic forms of the heads' outputs (heads, value, value) → their sum as one of latents (rank, rank)."""
        projection = self._projection[:, self.nope :].to(grams.dtype)
        return torch.einsum("hvr,hvw,hws->rs", projection, grams, projection)

    def expand(self, rope_keys: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """``rope_keys`` (batch, 1, tokens, rope), ``latents`` (batch, 1, tokens, rank) → keys and values of each head.

        They are (batch, heads, tokens, rope + nope) and (batch, heads, tokens, value).
        """
        expanded = torch.matmul(latents.to(self._projection.dtype), self._projection.flatten(0, 1).T)
        heads = expanded[:, 0].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        nope, values = heads.split([self.nope, self.value], -1)
        shared = rope_keys.to(nope.dtype).expand(-1, self.heads, -1, -1)
        return torch.cat([shared, nope], -1), values

    @property
    def _projection(self) -> Tensor:
        """W_UK and W_UV of every head (heads, nope + value, rank), a view."""
        weight: Tensor = self.module.kv_b_proj.weight  # type: ignore[union-attr,assignment]
        return weight.view(self.heads, -1, self.rank)


@dataclass(frozen=True)
class Form:
    """How the queries of a forward pass meet what a latent layer stores."""

    attention: LatentAttention
    absorbed: bool = False

    def met(self, rope_keys: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values as the queries meet them, of any stored tokens."""
        if self.absorbed:
            return torch.cat([rope_keys, latents], -1), latents
        return self.attention.expand(rope_keys, latents)


def require_dense(module: nn.Module) -> None:
    """Refuse DeepSeek sparse attention, which DeepSeek-V3.2 and others put in front of their latent attention.

    Raises:
        UnsupportedModelError: an indexer picks the tokens that queries of ``module`` attend.
    """
    if getattr(module, "indexer", None) is not None:
        raise UnsupportedModelError(
            f"{type(module).__name__}: an indexer picks the tokens that queries attend (sparse attention) and keeps "
            "keys of its own beside the cache; kvbench carries dense attention only",
            "sparse attention: an indexer picks tokens",
        )


def latent_attention(module: nn.Module) -> LatentAttention | None:
    """The latent attention of an attention ``module``; None if it is of another kind.

    Raises:
        UnsupportedModelError: it is of this kind, and kvbench cannot carry it.
    """
    expand = getattr(module, "expand_kv", None)
    if expand is None:
        return None
    return expand if isinstance(expand, LatentAttention) else LatentAttention(module)
