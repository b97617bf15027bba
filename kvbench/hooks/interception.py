"""Standing between a Hugging Face decoder and its attention, without touching model code.

Two public extension points carry everything kvbench does inside a model: a forward pre-hook on every attention module
(which can hand the layer an identity rotation, so that keys and queries stay *before RoPE*) and a registered attention
function (which receives queries, keys and values instead of the stock kernel). Layers of multi-head latent attention
also hand it what they cache, unexpanded (:mod:`kvbench.hooks.latent_attention`). A :class:`Handler` decides per forward
pass; where it declines, the stock attention runs.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvbench.errors import KvbenchError, UnsupportedModelError
from kvbench.hooks.implementation import IMPLEMENTATION, check_switched, switch, switch_back, written_out
from kvbench.hooks.latent_attention import Form, LatentAttention, latent_attention, require_dense
from kvbench.hooks.rotations import Rotation, as_given, as_pair, rotation_of, takes_halves


@dataclass(frozen=True)
class AttentionCall:
    """One attention layer in one forward pass.

    ``query`` is (batch, heads, new tokens, head_dim), ``keys`` and ``values`` are whatever the cache's ``update``
    returned, or the new tokens' (batch, kv heads, new tokens, head_dim) without a cache. With ``rotation`` set, query
    and keys are still before RoPE and must be rotated with it. ``mask`` is boolean (batch, 1, new tokens, all tokens),
    True = attend; None means causal among the new tokens and everything before them. ``sinks`` (heads,) are learned
    scores that every softmax runs over beside those of the tokens, and whose values are zero (gpt-oss).

    ``form`` is set in multi-head latent attention (:mod:`kvbench.hooks.latent_attention`): keys are then the RoPE keys,
    values the latents, and queries (batch, heads, new tokens, rope + nope) meet neither of them but :meth:`met`.
    """

    module: nn.Module
    query: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None
    rotation: Rotation | None
    form: Form | None = None
    sinks: Tensor | None = None

    def met(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stored ``keys`` and ``values`` of any tokens as the queries meet them."""
        return (keys, values) if self.form is None else self.form.met(keys, values)

    @property
    def reads(self) -> str:
        """What queries read of tokens that are stored as floating-point numbers (:mod:`kvbench.cache.reads`)."""
        return "latents" if self.form is not None and self.form.absorbed else "exact"

    def absorbed(self) -> AttentionCall:
        """The call whose queries meet keys and values as they are stored, in the latents where there are any."""
        if self.form is None:
            return self
        return replace(self, query=self.form.attention.absorb(self.query), form=replace(self.form, absorbed=True))

    def finished(self, sums: Tensor) -> Tensor:
        """The heads' outputs, from sums of the values that queries met."""
        return self.form.attention.release(sums) if self.form is not None and self.form.absorbed else sums


class Context(Protocol):
    """What a handler returns to take over one attention layer for one forward pass."""

    def attend(self, call: AttentionCall) -> Tensor:
        """The attention output, (batch, heads, new tokens, value_dim)."""


@dataclass
class Takeover:
    """A handler's decision: who attends, and which rotation the model code may still apply."""

    context: Context
    before_rope: bool = False
    replace_rotation: Rotation | None = None


class Handler(Protocol):
    """Decides, before an attention layer runs, whether to take it over."""

    def prepare(self, layer: int, cache: Any, rotation: Rotation | None, positions: Tensor | None) -> Takeover | None:
        """None leaves the layer to the stock attention function."""


@dataclass
class Interception:
    """Context manager: while it is open, ``handler`` sees every attention layer of ``model``.

    Closing restores the model bit for bit: hooks gone, and the previous attention implementation back once no other
    interception of the model is open, in whatever order they close.

    Raises:
        UnsupportedModelError: the model has no attention interface, or its layers are not numbered.
    """

    model: PreTrainedModel
    handler: Handler
    _hooks: list[Any] = field(default_factory=list)
    _latent: list[LatentAttention] = field(default_factory=list)

    def __enter__(self) -> Interception:
        modules = attention_modules(self.model)
        latent = [latent_attention(module) for module in modules.values()]
        switch(self.model, self)
        positions = _Positions()
        self._hooks.append(self.model.register_forward_pre_hook(positions.note, with_kwargs=True))
        self._hooks.append(self.model.register_forward_hook(positions.forget, always_call=True))
        for layer, module in modules.items():
            hook = _pre_hook(layer, self.handler, positions, takes_halves(module))
            self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        self._latent = [attention for attention in latent if attention is not None]
        for attention in self._latent:
            attention.stand_in(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        tb: TracebackType | None = None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for attention in self._latent:
            attention.step_back(self)
        self._latent.clear()
        switch_back(self.model, self)


def attention_modules(model: nn.Module) -> dict[int, nn.Module]:
    """Layer index → the innermost numbered module whose forward takes a cache and hands further keywords on.

    Of several in one layer the first: in decoders of encoder-decoder models the second one attends to the encoder.

    Raises:
        UnsupportedModelError: there are none, or they are sparse.
    """
    modules: dict[int, nn.Module] = {}
    cached = [module for module in model.modules() if _takes_cache(module)]
    hooked = {module for module in cached if _takes_keywords(module)}
    for module in model.modules():
        require_dense(module)
        if module in hooked and not any(part in hooked for part in module.modules() if part is not module):
            modules.setdefault(module.layer_idx, module)  # type: ignore[arg-type,call-overload]
    if cached and not modules:
        raise written_out(model)
    if not modules:
        raise UnsupportedModelError(
            f"no attention layers found in {type(model).__name__}: kvbench needs a decoder whose attention modules "
            "carry layer_idx and take past_key_values",
            "no attention layers that take a cache",
        )
    return dict(sorted(modules.items()))


def _takes_cache(module: nn.Module) -> bool:
    """Whether ``module`` is numbered and its forward takes a cache."""
    if getattr(module, "layer_idx", None) is None:
        return False
    parameters = inspect.signature(module.forward).parameters
    return "past_key_values" in parameters or "layer_past" in parameters


def _takes_keywords(module: nn.Module) -> bool:
    """Whether its forward takes any keyword, for its attention function: kvbench adds one of its own."""
    return any(each.kind is each.VAR_KEYWORD for each in inspect.signature(module.forward).parameters.values())


def rotate(module: nn.Module, states: Tensor, rotation: Rotation, rotary_dims: int) -> Tensor:
    """Apply the model's own RoPE to the first ``rotary_dims`` of ``states`` (batch, heads, tokens, head_dim).

    The family's ``apply_rotary_pos_emb`` is *called*, so half-split and interleaved conventions both come out right.
    """
    if rotary_dims == 0:
        return states
    apply = rotation_of(module)
    rotated = states[..., :rotary_dims]
    rotated = apply(rotated, rotated[:, :1], *rotation)[0]  # it rotates keys as well: one head is the least it takes
    if rotary_dims == states.shape[-1]:
        return rotated
    return torch.cat([rotated, states[..., rotary_dims:]], -1)


class _Positions:
    """Where the tokens of a forward pass stand, as the caller says: Llama 4, for one, does not tell its layers."""

    def __init__(self) -> None:
        self.given: Tensor | None = None

    def note(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the whole model. Positions of several axes, as of images, are none of tokens."""
        given = kwargs.get("position_ids")
        self.given = given if given is not None and given.dim() == 2 else None

    def forget(self, module: nn.Module, args: tuple, output: Any) -> None:
        """A forward hook: the next pass may be one of a part of the model, which this does not see."""
        self.given = None


def _pre_hook(
    layer: int, handler: Handler, positions: _Positions, halves: bool
) -> Callable[[nn.Module, tuple, dict], tuple[tuple, dict] | None]:
    """The forward pre-hook of one attention module: calls the handler, rewrites two keyword arguments."""

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        cache = kwargs.get("past_key_values", kwargs.get("layer_past"))
        given = kwargs.get("position_embeddings")
        rotation = as_pair(given, halves)
        told = kwargs.get("position_ids")
        takeover = handler.prepare(layer, cache, rotation, positions.given if told is None else told)
        if takeover is None:
            return None
        check_switched(getattr(module, "config", None))
        if kwargs.get("output_attentions"):
            raise KvbenchError(
                "a compressed cache gives no attention weights; leave output_attentions out, or run without the cache"
            )
        real = None
        if rotation is not None and takeover.before_rope:
            real = rotation
            cos, sin = rotation
            kwargs = dict(kwargs, position_embeddings=as_given((torch.ones_like(cos), torch.zeros_like(sin)), given))
        elif rotation is not None and takeover.replace_rotation is not None:
            kwargs = dict(kwargs, position_embeddings=as_given(takeover.replace_rotation, given))
        return args, dict(kwargs, kvbench=(takeover.context, real))

    return hook


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    kvbench: tuple[Context, Rotation | None] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The registered attention function: the handler's context if there is one, else the stock kernel."""
    latent = getattr(module, "expand_kv", None)
    latent = latent if isinstance(latent, LatentAttention) else None
    if kvbench is None:
        key, value = (key, value) if latent is None else latent.stock(key, value)
        return _stock(module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, **kwargs)
    context, rotation = kvbench
    if kwargs.get("dropout"):
        raise KvbenchError("the model drops attention weights at random, as in training; call model.eval()")
    if kwargs.get("position_bias") is not None:
        raise _biased("the model adds a bias to scores by position")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask = _as_boolean(attention_mask)
    query, form = (query, None) if latent is None else (latent.in_order(query), Form(latent))
    call = AttentionCall(
        module, query, key, value, attention_mask, scaling, softcap, rotation, form, kwargs.get("s_aux")
    )
    return context.attend(call).to(query.dtype).transpose(1, 2).contiguous(), None


def _as_boolean(mask: Tensor) -> Tensor:
    """A caller's additive mask (0: attend, very negative: do not) as a boolean one.

    Raises:
        UnsupportedModelError: it holds anything else, such as a bias.
    """
    attend, blocked = mask == 0, mask <= torch.finfo(mask.dtype).min / 2
    if not bool((attend | blocked).all()):
        raise _biased("the attention mask adds a bias to scores (it may hold 0 and the dtype's lowest number, or -inf)")
    return attend


def _biased(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{what}, which compressed caches do not take", "scores get a bias beside keys")


def _stock(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Stock attention: torch's fused kernel, or the family's own eager function for what that one lacks.

    These are softcaps and learned sinks.
    """
    if kwargs["softcap"] is None and kwargs.get("s_aux") is None:
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    return sys.modules[type(module).__module__].eager_attention_forward(module, query, key, value, mask, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _attention)
# Without a mask function of the same name transformers silently builds no mask at all, and padding is attended to.
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, sdpa_mask)
