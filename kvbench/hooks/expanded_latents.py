"""A cache of expanded keys and values for latent attention, as transformers kept it before version 5.15.

Those versions cached ``[k_nope | k_rope]`` and values of every head; later ones cache the latents and expand all of
them at every step. Here new tokens are expanded once, when the cache takes them in, and the layer's ``expand_kv`` hands
through what the cache gives back.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from kvbench.hooks.interception import attention_modules
from kvbench.hooks.latent_attention import latent_attention

_MARK = "kvbench_expanded"
"""An attribute of keys that are expanded already: of these tensors alone, not of what is made of them."""


def latent_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """Layer index → attention module, of those layers that transformers caches latents of.

    Raises:
        UnsupportedModelError: the model has no attention layers that take a cache, or sparse ones.
    """
    return {layer: module for layer, module in attention_modules(model).items() if hasattr(module, "expand_kv")}


def expanded_elements(module: nn.Module) -> int:
    """Elements of a token's keys and values of all heads of a latent attention ``module``."""
    attention = latent_attention(module)
    assert attention is not None
    return attention.heads * (attention.nope + attention.rope + attention.value)


class ExpandedLayer(DynamicLayer):
    """Keys (batch, heads, tokens, nope + rope) and values (batch, heads, tokens, value) of one attention ``module``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = weakref.ref(module)  # copies of a cache share it, and it is no memory of theirs

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Expand the latents (batch, 1, new tokens, rank) and RoPE keys of new tokens; all keys and values."""
        module: Any = self._module()
        expanded = type(module).expand_kv(module, key_states, value_states)
        keys, values = super().update(*expanded, *args, **kwargs)
        setattr(keys, _MARK, True)
        return keys, values


def expanded_cache(model: PreTrainedModel) -> Cache:
    """An empty cache whose layers of latent attention keep keys and values; others are as in transformers."""
    cache = DynamicCache(config=model.config)
    for layer, module in latent_modules(model).items():
        cache.layers[layer] = ExpandedLayer(module)
    return cache


@contextmanager
def expanding_once(model: PreTrainedModel) -> Iterator[None]:
    """Within, layers of ``model`` expand no keys and values that come out of an :func:`expanded_cache`."""
    modules = latent_modules(model).values()
    before = [vars(module).get("expand_kv") for module in modules]
    for module in modules:
        module.expand_kv = _handing_through(module)  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, expand in zip(modules, before, strict=True):
            vars(module).pop("expand_kv", None)
            if expand is not None:
                module.expand_kv = expand


def _handing_through(module: Any) -> Any:
    expand = module.expand_kv

    def expand_kv(latents: Tensor, rope_keys: Tensor) -> tuple[Tensor, Tensor]:
        return (latents, rope_keys) if hasattr(latents, _MARK) else expand(latents, rope_keys)

    return expand_kv
