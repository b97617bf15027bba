"""Cache layers of fixed shape: what one decode step reads and writes never changes its place or its size.

The length of a growing cache is a Python number that changes at every step, which a compiled or captured graph cannot
follow. Here every buffer is allocated once, for the longest context, and lengths are tensors on the model's device: a
mask made from them leaves out what is not filled yet. The exact tokens stand in one buffer, ``sinks | window``; the
encoded body lies between the two. A step writes one exact token and reads; encoding the block that has left the window
is :meth:`settle`, which runs between steps and is no part of the graph.

The price: a step attends over the whole capacity, filled or not, so a maximum length should be no larger than needed.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from kvbench.cache.block_frame import BlockFrame
from kvbench.cache.body import kind
from kvbench.cache.body_attention import body_attention
from kvbench.cache.buffers import AXIS, GrowingTensor
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.layer import ExactLayer, TensorsByKind, require_finite
from kvbench.cache.rounding import beyond_float16
from kvbench.codecs.quantizers.base import Stored
from kvbench.errors import KvbenchError
from kvbench.hooks.interception import AttentionCall
from kvbench.hooks.rotary import StaticRotator
from kvbench.kernels.reading import Reading
from kvbench.kernels.reference import beside_sinks, merge, partial_attention


class StaticLayer(CacheLayerMixin):
    """Takes one new token per row and step. ``seen`` () int64 is the number of tokens before it, for all layers."""

    is_compileable = True
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, seen: Tensor, keys: Tensor, values: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype  # the model's
        self.seen, self.exact_keys, self.exact_values = seen, keys, values
        self.expected = False  # whether kvbench's attention runs next; set before every forward pass
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: every buffer was there from the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Hand the new token (batch, kv heads, 1, ·) through to :meth:`attend`, which stores it.

        Raises:
            KvbenchError: called by stock attention, or with more than one token.
        """
        if not self.expected or key_states.shape[AXIS] != 1:
            raise KvbenchError(
                "a static cache takes one token at a time inside its own `with compress(...)` block; "
                "prompts go through new_cache()"
            )
        self.expected = False
        return key_states, value_states

    def attend(self, call: AttentionCall) -> Tensor:
        """Store the new token and attend: (batch, heads, 1, value_dim). Reads no number back from the device."""
        call = call.absorbed()
        return call.finished(self.step(call))

    @abstractmethod
    def step(self, call: AttentionCall) -> Tensor:
        """The same, without leaving the latents where queries are in them."""

    @abstractmethod
    def tensors_by_kind(self) -> TensorsByKind:
        """Every buffer with the kind of its bytes."""

    def settle(self, tokens: int) -> None:
        """Encode what has left the window once ``tokens`` are cached; between steps.

        Raises:
            KvbenchError: the step's token is beyond float16's range, in which it was stored.
        """
        self.require_range()

    def require_range(self) -> None:
        """The step itself cannot check whether its token was rounded to infinity; the first call after it does."""
        if self.exact_keys.dtype == torch.float16 != self.dtype:
            for exact in (self.exact_keys, self.exact_values):
                if not bool(exact.isfinite().all()):
                    raise beyond_float16()

    def write(self, index: Tensor, call: AttentionCall) -> None:
        """Put the new token at ``index`` ()."""
        self.exact_keys.index_copy_(AXIS, index.view(1), call.keys.to(self.exact_keys.dtype))
        self.exact_values.index_copy_(AXIS, index.view(1), call.values.to(self.exact_values.dtype))

    def get_seq_length(self) -> int:
        """Tokens seen, as a tensor: a number would be read back from the device at every step."""
        return self.seen  # type: ignore[return-value]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The new token alone: the layer makes its own masks."""
        return int(query_length), 0

    def get_max_length(self) -> int:
        """No maximum, to transformers: the tokens of a layer sit in several buffers."""
        return -1

    get_max_cache_shape = get_max_length


class StaticExactLayer(StaticLayer):
    """Keys after RoPE and values as they are, for ``capacity`` tokens; a sliding window is a ring buffer."""

    def __init__(self, layer: ExactLayer, seen: Tensor, tokens: int, capacity: int) -> None:
        assert layer.tail_keys is not None and layer.tail_values is not None
        window = capacity if layer.sliding_window is None else min(layer.sliding_window, capacity)
        filled = min(layer.tail_keys.length, window)
        slots = torch.arange(tokens - filled, tokens, device=seen.device) % window
        buffers = []
        for tail in (layer.tail_keys.view, layer.tail_values.view):
            buffers.append(zeros(tail, window))
            buffers[-1][:, :, slots] = tail[:, :, tail.shape[AXIS] - filled :]
        super().__init__(seen, buffers[0], buffers[1], layer.dtype)
        self.window = window

    def step(self, call: AttentionCall) -> Tensor:
        """Over the whole buffer; the order of its tokens does not matter."""
        self.write(self.seen % self.window, call)
        mask = torch.arange(self.window, device=self.seen.device) <= self.seen
        mask = mask.view(1, 1, 1, -1)
        exact = call.met(self.exact_keys, self.exact_values)
        return beside_sinks(partial_attention(call.query, *exact, call.scaling, mask, call.softcap), call.sinks)

    def tensors_by_kind(self) -> TensorsByKind:
        """All of it is exact."""
        yield "exact", self.exact_keys
        yield "exact", self.exact_values


class StaticCompressedLayer(StaticLayer):
    """``sinks | body | window`` of a :class:`CompressedLayer`, with a body for ``capacity`` tokens in all.

    Keys of sinks and window are after RoPE, those of the body in the codec's frame. The encoded entries are counted
    twice: ``encoded`` for :meth:`settle`, and ``start`` () int64 on the device for the graph.
    """

    def __init__(
        self, layer: CompressedLayer, seen: Tensor, capacity: int, rotator: StaticRotator | None, reading: Reading
    ) -> None:
        assert layer.tail_keys is not None and layer.tail_values is not None
        spans = layer.spans
        window = spans.sinks + spans.recent + spans.block
        buffers = []
        for sinks, tail in ((layer.sink_keys, layer.tail_keys), (layer.sink_values, layer.tail_values)):
            exact = tail.view if sinks is None else torch.cat([sinks, tail.view], AXIS)
            buffers.append(zeros(exact, window))
            buffers[-1][:, :, : exact.shape[AXIS]] = exact
        super().__init__(seen, buffers[0], buffers[1], layer.dtype)
        self.codec = layer.codec
        for side in self.codec.sides.values():
            if side.transform is not None:
                _ = side.transform.shifts  # cached from here on: a graph cannot read it from the device
        for latents in self.codec.latents.values():
            _ = latents.decoder, latents.mean  # and cannot take the lock behind a cached property
        self.spans, self.reading = spans, reading
        self.block_frame = None if rotator is None else BlockFrame(rotator, layer.codec.bands)
        self.encoded = layer.body.entries
        self.start = torch.tensor(self.encoded, device=seen.device)
        self.capacity = max(spans.boundary(capacity) - spans.sinks, self.encoded)
        self.body = self._new_body(layer)

    def _new_body(self, layer: CompressedLayer) -> Stored:
        """Room for the codes of ``capacity`` entries; a block of zeros tells their shapes."""
        block, used = self.codec.block, layer.body.view()
        keys, values = (self._as_computed(zeros(exact, block)) for exact in (self.exact_keys, self.exact_values))
        blank = self.codec.encode(keys, values)
        body = {name: zeros(one, one.shape[AXIS] * (self.capacity // block)) for name, one in blank.items()}
        for name, tensor in used.items():
            body[name][:, :, : tensor.shape[AXIS]] = tensor
        return body

    def _as_computed(self, exact: Tensor) -> Tensor:
        """Exact tokens in the model's dtype; they may be stored in a narrower one."""
        return exact.to(self.dtype)

    # ---- the step: one graph, whatever the lengths ------------------------------------------------------------------

    def step(self, call: AttentionCall) -> Tensor:
        """Over sinks and window, and over the body."""
        query = call.query
        self.write(self.seen - self.start, call)
        index = torch.arange(self.exact_keys.shape[AXIS], device=self.seen.device)
        exact = call.met(self._as_computed(self.exact_keys), self._as_computed(self.exact_values))
        mask = (index <= self.seen - self.start).view(1, 1, 1, -1)
        part = partial_attention(query, *exact, call.scaling, mask, call.softcap)
        if not self.capacity:
            return beside_sinks(part, call.sinks)
        if self.codec.decoupled:
            query = torch.cat([query, self._before_rope(query)], -1)
        mask = (torch.arange(self.capacity, device=self.seen.device) < self.start).view(1, 1, 1, -1)
        rotate_keys = None if self.block_frame is None else self._rotate_keys
        attention = body_attention(self.codec, self.reading, call.form)
        body = attention.attend(query, self.body, self.capacity, rotate_keys, call.scaling, mask, call.softcap)
        return beside_sinks(merge([part, body]), call.sinks)

    def _rotate_keys(self, keys: Tensor, begin: int, end: int) -> Tensor:
        assert self.block_frame is not None
        return self.block_frame.restore(keys, self._slots(end), begin)

    def _before_rope(self, query: Tensor) -> Tensor:
        """The new token's query, turned back."""
        return query if self.block_frame is None else self.block_frame.before_rope(query, self.seen).to(query.dtype)

    def _slots(self, entries: int) -> Tensor:
        return torch.arange(self.spans.sinks, self.spans.sinks + entries, device=self.seen.device)

    # ---- between steps ----------------------------------------------------------------------------------------------

    def settle(self, tokens: int) -> None:
        """Encode the block that has left the window, if one has, and move the rest of the window up.

        Raises:
            KvbenchError: NaN or infinite values, or the step's token is beyond the range of exact=float16.
        """
        self.require_range()
        sinks = self.spans.sinks
        count = self.spans.boundary(tokens) - sinks - self.encoded
        if count <= 0:
            return
        leaving = slice(sinks, sinks + count)
        keys, values = (self._as_computed(exact[:, :, leaving]) for exact in (self.exact_keys, self.exact_values))
        require_finite(keys, values)
        if self.block_frame is not None:
            keys = self.block_frame.store(keys, self._slots(self.encoded + count), self.encoded)
        stored = self.codec.encode(keys, values)
        for name, tensor in stored.items():
            entries = tensor.shape[AXIS]
            self.body[name].narrow(AXIS, self.encoded * entries // count, entries).copy_(tensor)
        for exact in (self.exact_keys, self.exact_values):
            exact[:, :, sinks:-count] = exact[:, :, sinks + count :].clone()
        self.encoded += count
        self.start.add_(count)

    def tensors_by_kind(self) -> TensorsByKind:
        """Sinks and window are exact; of the body's buffers the filled part says what it is, and the rest is slack."""
        yield "exact", self.exact_keys
        yield "exact", self.exact_values
        for name, tensor in self.body.items():
            yield kind(name), GrowingTensor(tensor, tensor.shape[AXIS] * self.encoded // max(self.capacity, 1))


def zeros(like: Tensor, entries: int) -> Tensor:
    """A buffer for ``entries`` of what ``like`` (batch, heads or groups, any, …) holds."""
    return like.new_zeros(*like.shape[:AXIS], entries, *like.shape[AXIS + 1 :])
