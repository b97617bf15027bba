"""The weights of the attention projections, measured instead of read from module names.

Fed unit vectors, an attention layer hands the columns of W_k and W_v to its attention; answered with unit vectors, it
puts out the columns of W_o. One forward pass thus reads every family alike, fused or transposed or quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvbench.hooks.geometry import LayerGeometry, ModelGeometry
from kvbench.hooks.interception import AttentionCall, Interception, Takeover, attention_modules
from kvbench.hooks.latent_attention import LatentAttention, latent_attention
from kvbench.hooks.rotations import Rotation

PROBE = 4096.0
"""Length of the unit vectors: large against biases, so that 16-bit models do not round the weights away; exact."""

ROW = 256
"""Tokens per row of the probing pass: below every model's context length."""

LINEAR = 0.1
"""Largest relative error of superposition at which an answer still counts as linear in the input."""


@contextmanager
def hidden_states(
    model: PreTrainedModel, layers: Iterable[int], function: Callable[[int, Tensor], Tensor | None]
) -> Iterator[None]:
    """While open, ``function(layer, hidden)`` sees every attention layer's input; a tensor it returns replaces it."""
    modules = attention_modules(model)
    hooks = [modules[layer].register_forward_pre_hook(_hook(layer, function), with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hook(layer: int, function: Callable[[int, Tensor], Tensor | None]) -> Callable[..., tuple[tuple, dict] | None]:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        given = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        replaced = function(layer, given)
        if replaced is None:
            return None
        if "hidden_states" in kwargs:
            return args, dict(kwargs, hidden_states=replaced)
        return (replaced, *args[1:]), kwargs

    return hook


@torch.no_grad()
def measure_projections(model: PreTrainedModel, geometry: ModelGeometry) -> dict[int, dict[str, Tensor]]:
    """Per full-attention layer ``key_weight`` (K, hidden), ``key_bias`` (K,), the same of values, and ``output_gram``.

    ``output_gram`` (kv_heads, value_dim, value_dim) is Σ W_oᵀ W_o over the query heads of a group; of latents, through
    W_UV. Weights are in the model's dtype. A projection that is not linear in the layer's input (a norm behind W_k) is
    left out.
    """
    hidden = int(model.get_input_embeddings().embedding_dim)  # type: ignore[arg-type]
    modules = attention_modules(model)
    answers = {layer.layer: _Answers(layer, latent_attention(modules[layer.layer])) for layer in geometry.compressible}
    widest = max([hidden, *(layer.output_width for layer in answers.values())])
    rows = -(-(widest + 2) // ROW)
    probe = _Probe(answers, rows)
    hooks = [modules[layer].register_forward_hook(probe.take_output(layer)) for layer in probe.layers]
    ids = torch.zeros(rows, ROW, dtype=torch.long, device=model.device)
    try:
        with Interception(model, probe), hidden_states(model, probe.layers, probe.units):
            model.base_model(ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: measured.projections(hidden) for layer, measured in answers.items()}


@dataclass
class _Answers:
    """What one layer answered to the unit vectors, each (rows · tokens, width); also the layer's attention."""

    geometry: LayerGeometry
    latent: LatentAttention | None
    keys: Tensor | None = None
    values: Tensor | None = None
    outputs: Tensor | None = None

    @property
    def output_width(self) -> int:
        """Channels that the heads put out, all together."""
        return self.geometry.heads * (self.geometry.value_dim if self.latent is None else self.latent.value)

    def attend(self, call: AttentionCall) -> Tensor:
        self.keys, self.values = (part.transpose(1, 2).flatten(2).flatten(0, 1) for part in (call.keys, call.values))
        batch, heads, tokens, _ = call.query.shape
        return _units(batch, tokens, self.output_width, call.values).unflatten(-1, (heads, -1)).transpose(1, 2)

    def projections(self, hidden: int) -> dict[str, Tensor]:
        """The measured weights by their names in the statistics."""
        geometry, measured = self.geometry, {}
        for name, answers in (("key", self.keys), ("value", self.values)):
            linear = _linear_map(answers, hidden)
            if linear is not None:
                measured[f"{name}_weight"], measured[f"{name}_bias"] = linear
        output = _linear_map(self.outputs, self.output_width)
        if output is not None:
            weight = output[0].double().unflatten(1, (geometry.kv_heads, geometry.group_size, -1))
            grams = torch.einsum("ogid,ogie->gide", weight, weight)
            measured["output_gram"] = grams.sum(1) if self.latent is None else self.latent.gram(grams[0])[None]
        return {name: tensor.cpu() for name, tensor in measured.items()}


class _Probe:
    """Handler of the probing pass."""

    def __init__(self, layers: dict[int, _Answers], rows: int) -> None:
        self.layers, self.rows = layers, rows

    def prepare(self, layer: int, cache: Any, rotation: Rotation | None, positions: Tensor | None) -> Takeover | None:
        if layer not in self.layers:
            return None
        return Takeover(self.layers[layer], before_rope=self.layers[layer].geometry.rotary_dims > 0)

    def units(self, layer: int, hidden: Tensor) -> Tensor:
        """Unit vectors in place of the layer's input."""
        return _units(self.rows, hidden.shape[1], hidden.shape[2], hidden)

    def take_output(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        """The forward hook that keeps the layer's output."""

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.layers[layer].outputs = (output[0] if isinstance(output, tuple) else output).flatten(0, 1)

        return hook


def _units(rows: int, tokens: int, width: int, like: Tensor) -> Tensor:
    """(rows, tokens, width): nothing, then every unit vector, then their sum, then nothing."""
    flat = like.new_zeros(rows * tokens, width)
    flat[1 : width + 1].fill_diagonal_(PROBE)
    flat[width + 1] = PROBE
    return flat.view(rows, tokens, width)


def _linear_map(answers: Tensor | None, width: int) -> tuple[Tensor, Tensor] | None:
    """Weight (out, width) and bias (out,) behind the answers to :func:`_units`; None if they are not linear."""
    if answers is None:
        return None
    bias = answers[0]
    columns, together = answers[1 : width + 1] - bias, answers[width + 1] - bias
    error = (columns.double().sum(0) - together).norm() / together.double().norm().clamp_min(1e-30)
    if not error <= LINEAR:
        return None
    return (columns / PROBE).T.contiguous(), bias.clone()
