"""Testing that a model can carry a compressed cache: identity codecs must reproduce what the stock model computes."""

from __future__ import annotations

from copy import deepcopy
from itertools import islice

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from kvbench.cache.attach import CompressedModel, LayerPlan, Plan
from kvbench.cache.spans import Spans
from kvbench.codecs.codec import Codec, SideCodec
from kvbench.codecs.frame import Frame, bands_of
from kvbench.codecs.quantizers.base import Passthrough
from kvbench.errors import KvbenchError, UnsupportedModelError
from kvbench.hooks.geometry import ModelGeometry, probe_geometry, refused_where_it_fails
from kvbench.hooks.interception import attention_modules
from kvbench.hooks.rope_deltas import without_rope_deltas

TOKENS = 20
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference of logits as a share of the largest logit."""
TOLERANCE_IN_16_BIT = 0.15
"""For models of which no copy in fp32 can be made: a mixture of experts differs from itself by as much."""


def identity_plan(geometry: ModelGeometry, frame: Frame, spans: Spans | None = None) -> Plan:
    """Nothing is compressed, yet everything runs through the whole machinery: the reference of the self-test."""
    layers = {}
    for layer in geometry.compressible:
        keys = SideCodec(layer.kv_heads, layer.head_dim, None, Passthrough(geometry.dtype))
        values = SideCodec(layer.kv_heads, layer.value_dim, None, Passthrough(geometry.dtype))
        bands = bands_of(layer, block=8) if frame == "bands" else None
        layers[layer.layer] = LayerPlan(Codec(keys, values, frame == "before", bands))
    return Plan(layers, spans or Spans())


def self_test(model: PreTrainedModel, geometry: ModelGeometry, frame: Frame) -> None:
    """Identity codecs must reproduce the stock logits on a few seeded tokens, in a prefill and a decode step.

    A 16-bit model is tested by its first layers in fp32: its rounding would hide a mistake of a tenth, and a model that
    is wrong is wrong in any dtype.

    Raises:
        UnsupportedModelError: they do not (a bias of scores, …), or the model's code takes no such cache.
        KvbenchError: the model is in training mode.
    """
    if model.training:
        raise KvbenchError(f"{type(model).__name__} is in training mode, where no two passes agree; call model.eval()")
    with without_rope_deltas(model):
        tested = model if model.dtype in TOLERANCE else _first_layers_in_fp32(model, geometry) or model
        error = _error(tested, geometry if tested is model else probe_geometry(tested), frame)
    if not error <= _tolerance(tested):
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot carry a compressed cache: with identity codecs the logits differ by "
            f"{error:.1e} of their range from the stock model's, so every number would be wrong",
            "identity codecs do not give the stock logits",
        )


def _tolerance(model: PreTrainedModel) -> float:
    return TOLERANCE.get(model.dtype, TOLERANCE_IN_16_BIT)


@torch.no_grad()
def _error(model: PreTrainedModel, geometry: ModelGeometry, frame: Frame) -> float:
    """Largest difference of the logits with identity codecs and of the stock ones, over the largest of these.

    Where a pass without a cache gives others than decoding with the stock cache (state-space layers, positions counted
    from token ids), what counts is the latter.
    """
    vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    ids = torch.randint(vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0)).to(model.device)
    plan = identity_plan(geometry, frame, Spans(sinks=2, recent=4, block=4))
    with CompressedModel(model, plan, geometry) as compressed, refused_where_it_fails(model, "kvbench's cache"):
        logits = _decoded(model, ids, compressed.new_cache())
    error = _difference(logits, model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits)
    if not error <= _tolerance(model):
        with refused_where_it_fails(model, "transformers' DynamicCache"):
            error = min(error, _difference(logits, _decoded(model, ids, DynamicCache(config=model.config))))
    return error


def _decoded(model: PreTrainedModel, ids: Tensor, cache: Cache) -> Tensor:
    """Logits of a prompt and one more token, through ``cache``."""
    everywhere = torch.ones_like(ids)
    head = model(ids[:, :-1], attention_mask=everywhere[:, :-1], past_key_values=cache, use_cache=True).logits
    tail = model(ids[:, -1:], attention_mask=everywhere, past_key_values=cache, use_cache=True).logits
    return torch.cat([head, tail], 1)


def _difference(logits: Tensor, stock: Tensor) -> float:
    return float((logits - stock).abs().max() / stock.abs().max().clamp_min(1e-9))


def _first_layers_in_fp32(model: PreTrainedModel, geometry: ModelGeometry) -> PreTrainedModel | None:
    """A copy of as many layers as hold one of every kind; None where the model cannot be copied or cut."""
    stack = _stack(model)
    if stack is None or geometry.readers or getattr(model, "hf_quantizer", None) is not None:
        return None
    every = stack._modules
    modules = [*every.values()]
    last = max(_first_of_each_kind(geometry))
    attention = attention_modules(model)[last]
    count = 1 + next(place for place, module in enumerate(modules) if attention in module.modules())
    try:
        stack._modules = dict(islice(every.items(), count))
        copy = deepcopy(model)
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    finally:
        stack._modules = every
    copy.config.get_text_config().num_hidden_layers = count
    return copy.float()


def _first_of_each_kind(geometry: ModelGeometry) -> list[int]:
    kinds: dict[tuple[object, ...], int] = {}
    for layer in geometry.layers:
        shape = layer.heads, layer.kv_heads, layer.head_dim, layer.value_dim, layer.rotary_dims, layer.rope_group
        kinds.setdefault((layer.sliding_window is None, layer.latent, *shape), layer.layer)
    return list(kinds.values())


def _stack(model: PreTrainedModel) -> torch.nn.ModuleList | None:
    """The list of decoder layers: the innermost one that holds all attention."""
    attention = {*attention_modules(model).values()}
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return next((each for each in reversed(lists) if attention <= {*each.modules()}), None)
