"""Collecting statistics: one forward pass over the calibration text, and optionally one backward pass for Fisher.

The Fisher pass draws labels from the model's own distribution, so Σ g gᵀ is the true Fisher information of the logits
with respect to keys and values, up to sampling: KL(p ‖ p̂) ≈ ½ tr(F · error covariance).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.calibration.across import collect_across
from kvbench.calibration.moments import SINKS, second_moment, token_rows
from kvbench.calibration.projections import hidden_states, measure_projections
from kvbench.calibration.readers import reader_takeover
from kvbench.calibration.statistics import LayerStatistics, Statistics
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import LayerGeometry, ModelGeometry
from kvbench.hooks.interception import AttentionCall, Interception, Takeover, rotate
from kvbench.hooks.rotations import Rotation
from kvbench.kernels.reference import exact_attention


class _LayerCollector:
    """Accumulates one layer; also the layer's attention while collecting."""

    def __init__(self, geometry: LayerGeometry, fisher: bool, sinks: int) -> None:
        self.geometry, self.fisher, self.sinks = geometry, fisher, sinks
        self._sums: dict[str, Tensor] = {}
        self._leaves: tuple[Tensor, Tensor, Tensor] | None = None

    def attend(self, call: AttentionCall) -> Tensor:
        keys, values, query = call.keys, call.values, call.query
        leaf = [torch.zeros_like(tensor, requires_grad=self.fisher) for tensor in (keys, keys, values)]
        keys = keys + leaf[0]
        rotated_query, rotated = query, keys
        if call.rotation is not None:
            rotated_query = rotate(call.module, query, call.rotation, self.geometry.rotary_dims)
            rotated = rotate(call.module, keys, call.rotation, self.geometry.rotary_dims)
        rotated, values = rotated + leaf[1], values + leaf[2]
        self._leaves = (leaf[0], leaf[1], leaf[2]) if self.fisher else None
        with torch.no_grad():
            self._moments("key", keys)
            self._moments("rotated_key", rotated)
            self._moments("value", values)
            self._add("key_value_second", second_moment(*(token_rows(side, self.sinks) for side in (keys, values))))
            self._add("query_second", self._query_second(query))
            self._add("rotated_query_second", self._query_second(rotated_query))
            self._add("query_sum", self._beside_keys(query).double().sum((0, 2)))
            self._add("head_query_second", self._head_query_second(query))
            self._add("count", torch.tensor(float(keys.shape[0] * (keys.shape[2] - self.sinks)), dtype=torch.float64))
        met = call.met(rotated, values)
        return exact_attention(rotated_query, *met, call.scaling, call.mask, call.softcap, call.sinks)

    def take_input(self, hidden: Tensor) -> None:
        """Fold in the layer's input (batch, tokens, hidden)."""
        self._add("input_abs_sum", hidden.detach()[:, self.sinks :].abs().double().sum((0, 1)))

    def take_gradients(self) -> None:
        """Fold the gradients of the backward pass into the Fisher sums."""
        if self._leaves is None:
            return
        for name, leaf in zip(("key", "rotated_key", "value"), self._leaves, strict=True):
            assert leaf.grad is not None
            flat = token_rows(leaf.grad, self.sinks)
            self._add(f"fisher_{name}", (flat.T @ flat).double())
        self._leaves = None

    def statistics(self, projections: dict[str, Tensor]) -> LayerStatistics:
        """The sums so far, on the CPU, with the layer's ``projections``."""
        empty = {f"fisher_{name}": torch.zeros(0, dtype=torch.float64) for name in ("key", "rotated_key", "value")}
        sums = {name: tensor.cpu() for name, tensor in self._sums.items()}
        return LayerStatistics(**(empty | sums | projections))

    def _moments(self, name: str, states: Tensor) -> None:
        flat = token_rows(states, self.sinks)
        self._add(f"{name}_sum", flat.double().sum(0))
        self._add(f"{name}_second", second_moment(flat, flat))

    def _query_second(self, query: Tensor) -> Tensor:
        grouped = (
            self._beside_keys(query).unflatten(1, (self.geometry.kv_heads, -1)).transpose(0, 1).flatten(1, 3).float()
        )
        return (grouped.transpose(1, 2) @ grouped).double()

    def _head_query_second(self, query: Tensor) -> Tensor:
        """Of every query head by itself, (heads, head_dim, head_dim)."""
        heads = self._beside_keys(query).split(1, 1)
        return torch.stack([second_moment(rows, rows) for rows in (token_rows(head, 0) for head in heads)])

    def _beside_keys(self, query: Tensor) -> Tensor:
        """Those channels of the queries behind the sinks that meet stored keys; the others meet latents."""
        return query[:, :, self.sinks :, : self.geometry.head_dim]

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value


class _Collector:
    """Handler that sends every full-attention layer to its collector."""

    def __init__(self, geometry: ModelGeometry, fisher: bool, sinks: int) -> None:
        self._geometry = geometry
        self.layers = {layer.layer: _LayerCollector(layer, fisher, sinks) for layer in geometry.compressible}

    def prepare(self, layer: int, cache: Any, rotation: Rotation | None, positions: Tensor | None) -> Takeover | None:
        if layer not in self.layers:
            return reader_takeover(self._geometry, layer)
        return Takeover(self.layers[layer], before_rope=self.layers[layer].geometry.rotary_dims > 0)

    def take_input(self, layer: int, hidden: Tensor) -> None:
        """The input of ``layer``'s attention."""
        self.layers[layer].take_input(hidden)


def collect(
    model: PreTrainedModel,
    geometry: ModelGeometry,
    windows: Tensor,
    *,
    fisher: bool = True,
    identity: tuple[str, str, str] = ("", "", ""),
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
    sinks: int = SINKS,
) -> Statistics:
    """Statistics over ``windows`` (count, length) of token ids; ``identity`` is (model, weights sha256, text sha256).

    ``progress`` is called with (windows done, windows in all). The first ``sinks`` tokens of a window do not count: a
    cache keeps them exactly.

    Raises:
        KvbenchError: the windows hold nothing but sinks.
    """
    if windows.shape[1] <= sinks:
        raise KvbenchError(f"calibration windows must be longer than {sinks} tokens, which are left out as sinks")
    if not geometry.compressible:
        return Statistics({}, *identity)  # nothing to know, and nothing for a backward pass to reach
    collector = _Collector(geometry, fisher, sinks)
    generator = torch.Generator().manual_seed(seed)
    projections = measure_projections(model, geometry)
    inputs = hidden_states(model, collector.layers, collector.take_input)
    with Interception(model, collector), inputs, _frozen(model), torch.set_grad_enabled(fisher):
        for index, ids in enumerate(windows.to(model.device)):
            logits = model(ids[None], use_cache=False).logits[0]
            if fisher:
                _backward(logits, generator)
                for layer in collector.layers.values():
                    layer.take_gradients()
            if progress is not None:
                progress(index + 1, len(windows))
    layers = {index: layer.statistics(projections[index]) for index, layer in collector.layers.items()}
    return Statistics(layers, *identity, measure_across=partial(collect_across, model, geometry, windows))


def _backward(logits: Tensor, generator: torch.Generator) -> None:
    """Back-propagate Σ −log p(y) with y drawn from the model; the gradient of the logits is p − onehot(y)."""
    with torch.no_grad():
        gradient = logits.float().softmax(-1)
        drawn = torch.multinomial(gradient.cpu(), 1, generator=generator).to(logits.device)
        gradient.scatter_add_(1, drawn, torch.full_like(drawn, -1, dtype=gradient.dtype))
    logits.backward(gradient.to(logits.dtype))


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """No gradients for weights: only keys and values get any."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
