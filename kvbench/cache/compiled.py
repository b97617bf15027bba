"""Decoding with one graph: the whole step, attention over compressed bytes included, compiled without a break.

Eager decoding spends a good part of a small model's step in Python. A graph needs a step that is the same every time:
:mod:`kvbench.cache.static` keeps shapes and addresses fixed and lengths on the device, the model's own code does the
rest, and once per block :meth:`StaticCompressedCache.settle` encodes between two steps::

    with kvbench.compress(loaded, "kivi:bits=4") as compressed:
        decode = kvbench.compiled_decode(compressed, prompt, max_length=4096)
        token = decode.logits.argmax(-1, keepdim=True)
        for _ in range(100):
            token = decode(token).argmax(-1, keepdim=True)

Attention runs in plain torch inside the graph, never in a kernel of kvbench's: it decodes tile by tile. The graph holds
every tile of every layer, so compiling takes longer the larger the maximum length; a smaller one also steps faster.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.attach import CompressedModel
from kvbench.cache.cache import CompressedCache
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.layer import ExactLayer
from kvbench.cache.shared import SharedLayer
from kvbench.cache.static import StaticCompressedLayer, StaticExactLayer, StaticLayer
from kvbench.cache.static_cache import StaticCompressedCache
from kvbench.codecs.quantizers.base import Quantizer
from kvbench.codecs.quantizers.entropy import EntropyQuantizer
from kvbench.codecs.quantizers.sections import Sections
from kvbench.errors import KvbenchError
from kvbench.hooks.rotary import RotaryTable, StaticRotator, StaticTable
from kvbench.kernels.reading import Reading


class CompiledDecode:
    """Decodes token by token on top of a prompt. ``logits`` (batch, vocabulary) are those after the prompt."""

    def __init__(self, model: PreTrainedModel, cache: StaticCompressedCache, logits: Tensor) -> None:
        self.cache, self.logits = cache, logits
        self.step = _step(model, cache)

    def compile(self, backend: str = "inductor", **options: object) -> CompiledDecode:
        """Compile the step in one piece; more ``options`` go to :func:`torch.compile`.

        ``mode="reduce-overhead"`` captures it as a CUDA graph, whose logits the next step overwrites.
        """
        # The cached functions that a step calls are pure: their arguments are bit widths.
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
        compiled = torch.compile(self.step, fullgraph=True, dynamic=False, backend=backend, **options)  # type: ignore[call-overload]
        self.step = compiled
        return self

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """Logits (batch, vocabulary) after ``ids`` (batch, 1).

        Raises:
            KvbenchError: the cache is full.
        """
        self.cache.require_room()
        logits = self.step(ids)
        self.cache.settle()
        return logits


@torch.no_grad()
def compiled_decode(
    compressed: CompressedModel, ids: Tensor, max_length: int, backend: str | None = "inductor"
) -> CompiledDecode:
    """Prefill ``ids`` (batch, tokens), rows of equal length, and get ready to decode until ``max_length`` are cached.

    The prompt goes through an ordinary cache, which is then copied: both exist for a moment. ``backend`` as in
    :func:`torch.compile`; None leaves the step as it is. The attachment must stay open while decoding.

    Raises:
        KvbenchError: what :func:`static_cache` cannot hold.
    """
    cache = compressed.new_cache()
    model = compressed.model
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits = model(ids, past_key_values=cache, use_cache=True, **last_only).logits[:, -1]
    decode = CompiledDecode(model, static_cache(compressed, cache, max_length), logits)
    return decode if backend is None else decode.compile(backend)


def static_cache(compressed: CompressedModel, cache: CompressedCache, max_length: int) -> StaticCompressedCache:
    """A static copy of ``cache``, which holds a prompt without padding, with room for ``max_length`` tokens in all.

    Raises:
        KvbenchError: no prompt or no room; positions that do not count from zero; or a layer that a graph cannot hold:
            one with a selector, with bases fitted to the prompt, shared by several layers, entropy coded, left-padded,
            or without attention.
    """
    tokens = cache.get_seq_length()
    if not 0 < tokens < max_length:
        raise KvbenchError(
            f"a static cache for {max_length} tokens needs a prompt of 1 to {max_length - 1}, got {tokens}"
        )
    for index, layer in enumerate(cache.layers):
        _require_static(index, layer)
    known = cache.positions.index
    if known is not None and not torch.equal(known, torch.arange(tokens, device=known.device)[None].to(known.dtype)):
        raise KvbenchError("a static cache needs a prompt whose positions are 0, 1, 2, … in every row")
    seen = torch.tensor(tokens, device=cache.kv_layers[0].device)
    reading = Reading("reference", compressed.reading.read)
    tables: dict[RotaryTable, StaticTable] = {}
    writers: dict[int, StaticTable] = {}
    layers: list[StaticLayer] = []
    for index, layer in enumerate(cache.kv_layers):
        rotator, static_rotator = compressed.rotator(index, cache), None
        if rotator is not None:
            if rotator.table not in tables:
                tables[rotator.table] = writers[index] = StaticTable(rotator.table, tokens, max_length)
            static_rotator = StaticRotator(rotator, tables[rotator.table])
        if isinstance(layer, CompressedLayer):
            layers.append(StaticCompressedLayer(layer, seen, max_length, static_rotator, reading))
        elif isinstance(layer, ExactLayer):
            layers.append(StaticExactLayer(layer, seen, tokens, max_length))
    return StaticCompressedCache(layers, writers, tokens, seen, max_length, compressed)


def _step(model: PreTrainedModel, cache: StaticCompressedCache) -> Callable[[Tensor], Tensor]:
    """ids (batch, 1) → logits (batch, vocabulary): the same operations on the same addresses, step after step."""

    def step(ids: Tensor) -> Tensor:
        positions = cache.seen.view(1, 1).expand(ids.shape[0], 1)
        # The layers mask for themselves; a ready mask over the new token alone spares the model making one.
        mask = torch.ones(ids.shape[0], 1, 1, 1, dtype=torch.bool, device=ids.device)
        output = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        cache.advance()
        return output.logits[:, -1]

    return step


def _require_static(index: int, layer: object) -> None:
    reason = _obstacle(layer)
    if reason is not None:
        raise KvbenchError(
            f"layer {index} cannot be decoded with a static cache: {reason}; decode it with new_cache() instead"
        )


def _obstacle(layer: object) -> str | None:
    """Why ``layer`` cannot have a static shape, if so."""
    if isinstance(layer, ExactLayer):
        return None
    if isinstance(layer, SharedLayer) or not isinstance(layer, CompressedLayer):
        return "several layers share its body" if isinstance(layer, SharedLayer) else "it is no attention layer"
    if layer.selector is not None:
        return "what a selector keeps has no fixed size"
    if layer.codec.row_bits:
        return "its bases are fitted to the prompt"
    if layer.first is not None:
        return "the prompt is left-padded"
    if any(_entropy_coded(side.quantizer) for side in layer.codec.sides.values()):
        return "entropy codes are decoded outside of torch"
    return None


def _entropy_coded(quantizer: Quantizer) -> bool:
    if isinstance(quantizer, Sections):
        return any(_entropy_coded(part) for _, part in quantizer.runs)
    return isinstance(quantizer, EntropyQuantizer)
