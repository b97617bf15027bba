"""What every kvbench cache layer is to transformers, and the layer that keeps everything exact.

transformers sees a :class:`CacheLayerMixin`; the attention context of :mod:`kvbench.cache.attach` sees ``attend``.
``update`` only hands through: the attention that follows takes the new tokens in, with masks and queries at hand.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from kvbench.cache.buffers import AXIS, GrowingTensor
from kvbench.cache.rounding import exact_dtype, stored_as
from kvbench.cache.spans import ExactDtype
from kvbench.errors import KvbenchError
from kvbench.hooks.applied import AppliedRotation
from kvbench.hooks.interception import AttentionCall
from kvbench.hooks.rotary import Rotator
from kvbench.kernels.decode import attend_exact, fitting_kernels
from kvbench.kernels.reading import DEFAULT, Reading
from kvbench.kernels.reference import Part, beside_sinks, exact_attention
from kvbench.selectors.base import Observed

TensorsByKind = Iterator[tuple[str, GrowingTensor | Tensor]]
"""Kinds of bytes (payload, scales, exact, positions), each with a tensor of that kind."""


class KVLayer(CacheLayerMixin):
    """Common ground of exact and compressed layers: token count, and an exact tail that new tokens are appended to.

    Exact tokens are stored in the dtype that ``exact`` names. A prompt attends to itself as it was computed, and what
    stays of it is rounded afterwards; every later token is rounded as it is appended, before anything attends to it. So
    a block of tokens and the same tokens one by one see the same numbers.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self, exact: ExactDtype = "model") -> None:
        super().__init__()
        self.exact = exact
        self.seen = 0
        self.expected = False  # whether kvbench's attention runs next; set before every forward pass
        self.reading: Reading = DEFAULT
        self.attended_by = ""  # what attended to the stored tokens last, in the words of kvbench.cache.reads
        self.tail_keys: GrowingTensor | None = None
        self.tail_values: GrowingTensor | None = None
        self.readers = 0  # later layers that read this one's tokens in every forward pass
        self._unread = 0  # how often they are still to be read in this one

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Remember dtype and device; memory is taken as tokens arrive."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    @torch.compiler.disable
    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Hand the new tokens (batch, kv heads, tokens, ·) through to :meth:`attend`, which stores them.

        Raises:
            KvbenchError: called by stock attention, which would see nothing but the new tokens; gradients are wanted;
                or the model's dtype or device is another than that of the tokens before.
        """
        if not self.expected:
            raise KvbenchError(
                "this cache was made for an attached model that is closed, or for another one; "
                "use it inside its own `with compress(...)` block"
            )
        self.expected = False
        if key_states.requires_grad or value_states.requires_grad:
            raise KvbenchError(
                "a compressed cache keeps no gradients: run the model under torch.no_grad(), as generate() does"
            )
        if self.is_initialized and (key_states.dtype, key_states.device) != (self.dtype, self.device):
            raise KvbenchError(
                f"this cache holds tokens of a model in {self.dtype} on {self.device}, and the model is in "
                f"{key_states.dtype} on {key_states.device} now; begin a new cache"
            )
        return key_states, value_states

    @property
    def exact_dtype(self) -> torch.dtype:
        """The dtype that exact tokens are stored in."""
        return exact_dtype(self.exact, self.dtype)

    def append(self, key_states: Tensor, value_states: Tensor) -> None:
        """Add tokens to the exact tail; rounded unless they are the first ones, a prompt."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.tail_keys is None or self.tail_values is None:
            # The prompt is taken over without a copy: one layer's exact prompt exists once.
            self.tail_keys, self.tail_values = GrowingTensor.adopt(key_states), GrowingTensor.adopt(value_states)
        else:
            keys, values = (stored_as(states, self.exact_dtype) for states in (key_states, value_states))
            self.tail_keys.append(keys)
            self.tail_values.append(values)
        self.seen += key_states.shape[AXIS]

    def round_prompt(self) -> None:
        """Round what is left of a prompt in the tail; nothing to do later on."""
        for tail in (self.tail_keys, self.tail_values):
            if tail is not None and tail.data.dtype != self.exact_dtype:
                tail.replace(stored_as(tail.view, self.exact_dtype))

    def attend_exact(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        call: AttentionCall,
        mask: Tensor | None,
        before: tuple[Tensor, Tensor] | None = None,
    ) -> Part:
        """Attention over exact tensors, and those ``before`` them, by kernel where one fits and may run."""
        keys, values = call.met(keys, values)
        before = None if before is None else call.met(*before)
        return attend_exact(query, keys, values, call.scaling, mask, call.softcap, self.reading.kernels, before)

    @abstractmethod
    def load(self, keys: Tensor, values: Tensor, observed: Observed, rotator: Rotator | None) -> None:
        """Take in an unpadded prompt computed elsewhere, as if this layer had just attended it.

        ``keys`` are after RoPE; ``observed`` are the prompt's last queries, as many as there are.
        """

    def attend(self, call: AttentionCall, rotator: Rotator | None, applied: AppliedRotation | None = None) -> Tensor:
        """Store the new tokens and attend: (batch, heads, new tokens, value_dim); may compress afterwards.

        Where later layers read these tokens too, once the last one has.
        """
        self.take(call, rotator, applied)
        self._unread = 1 + self.readers
        return self.read(call)

    def read(self, call: AttentionCall) -> Tensor:
        """Attention of one of the layers that read these tokens in a forward pass."""
        output = self.look(call)
        self._unread -= 1
        if not self._unread:
            self.settle()
        return output

    @abstractmethod
    def take(self, call: AttentionCall, rotator: Rotator | None, applied: AppliedRotation | None) -> None:
        """Store the new tokens; ``applied`` is what queries and keys were rotated by, where a selector needs it."""

    @abstractmethod
    def look(self, call: AttentionCall) -> Tensor:
        """Attention to all tokens, the last of which were just taken: (batch, heads, new tokens, value_dim)."""

    @abstractmethod
    def settle(self) -> None:
        """All layers have seen the new tokens exactly as they should: drop or compress what has left the window."""

    @abstractmethod
    def tensors_by_kind(self) -> TensorsByKind:
        """Every tensor this layer keeps, with the kind of its bytes."""

    @abstractmethod
    def map_rows(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function over the batch axis to every cached tensor."""

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forget every token from slot ``length`` on."""

    def get_seq_length(self) -> int:
        """Tokens seen, evicted or not: drives position ids and the mask's offset."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Mask length with the new tokens, and its offset."""
        return self.seen + int(query_length), 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    get_max_cache_shape = get_max_length

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens: a negative number, as transformers has it.

        Raises:
            KvbenchError: it is positive, or there are fewer tokens.
        """
        if tokens_to_remove > 0:
            raise KvbenchError(f"crop takes the negative number of tokens to remove, not {tokens_to_remove}")
        length = self.seen + tokens_to_remove
        if length < 0:
            raise KvbenchError(f"cannot crop {-tokens_to_remove} tokens from a cache of {self.seen}")
        if length == 0:
            self.reset()
        elif length < self.seen:
            self.truncate(length)

    def activate_past_recording(self) -> None:
        """Assisted generation announces itself; croppable layers need no preparation."""

    def offload(self) -> None:
        """Refused: a compressed cache stays where it is."""
        raise KvbenchError("kvbench's caches are not offloaded: they are small, and kernels read them where they are")

    prefetch = offload

    def reset(self) -> None:
        """Forget everything."""
        self.tail_keys = self.tail_values = None
        self.seen = 0
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search picks rows."""
        if self.seen:
            self.map_rows(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times."""
        if self.seen:
            self.map_rows(lambda tensor: tensor.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices``."""
        if self.seen:
            self.map_rows(lambda tensor: tensor[indices])


class ExactLayer(KVLayer):
    """Keys after RoPE and values as they are: the strong uncompressed baseline, and every sliding-window layer.

    Growth is amortised instead of copied every step, and a decode step folds the query group over its KV head.
    With ``sliding_window`` only the last window − 1 tokens are kept, as in transformers.
    """

    def __init__(self, sliding_window: int | None = None, exact: ExactDtype = "model") -> None:
        super().__init__(exact)
        self.sliding_window = sliding_window
        self.is_sliding = sliding_window is not None
        self.record_past = False

    def take(self, call: AttentionCall, rotator: Rotator | None, applied: AppliedRotation | None) -> None:
        """Append them to the tail."""
        self.append(call.keys, call.values)

    def look(self, call: AttentionCall) -> Tensor:
        """Exact attention over the tail; of one with a window, over what a mask of :meth:`get_mask_sizes` covers."""
        assert self.tail_keys is not None and self.tail_values is not None
        visible = slice(self._hidden(call.query.shape[AXIS]), None)
        keys, values = self.tail_keys.view[:, :, visible], self.tail_values.view[:, :, visible]
        mask = None if call.mask is None else call.mask[..., -keys.shape[AXIS] :]
        if self.reading.kernels and fitting_kernels(call.query, call.softcap) is not None:
            part = self.attend_exact(call.query, keys, values, call, mask)
            output, self.attended_by = beside_sinks(part, call.sinks), f"{part.by} {call.reads}"
        else:
            met = call.met(keys, values)
            output = exact_attention(call.query, *met, call.scaling, mask, call.softcap, call.sinks)
            if call.query.shape[AXIS] == 1:
                self.attended_by = f"torch {call.reads}"
        return output

    def settle(self) -> None:
        """Keep the window alone."""
        if not self.record_past:
            self._trim()
        self.round_prompt()

    def load(self, keys: Tensor, values: Tensor, observed: Observed, rotator: Rotator | None) -> None:
        """Take in a prompt."""
        self.append(keys, values)
        self._trim()
        self.round_prompt()

    def _trim(self) -> None:
        assert self.tail_keys is not None and self.tail_values is not None
        if self.sliding_window is None:
            return
        surplus = self.tail_keys.length - (self.sliding_window - 1)
        if surplus > 0:
            for tail in (self.tail_keys, self.tail_values):
                tail.drop_front(surplus, self.sliding_window)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Mask over the visible tokens plus the new ones, and the slot of the first visible one."""
        cached = 0 if self.tail_keys is None else self.tail_keys.length - self._hidden(0)
        return cached + int(query_length), self.seen - cached

    def _hidden(self, new: int) -> int:
        """Tokens of the tail before the window of the ``new`` ones in it: kept for a crop, and seen by no query."""
        if self.sliding_window is None or self.tail_keys is None:
            return 0
        return max(0, self.tail_keys.length - new - (self.sliding_window - 1))

    def get_max_length(self) -> int:
        """The window, if there is one."""
        return -1 if self.sliding_window is None else self.sliding_window

    def activate_past_recording(self) -> None:
        """Keep tokens beyond the window until the next crop, so that rejected drafts can be taken back."""
        self.record_past = True

    def truncate(self, length: int) -> None:
        """Forget the newest tokens."""
        assert self.tail_keys is not None and self.tail_values is not None
        kept = self.tail_keys.length - (self.seen - length)
        if self.sliding_window is not None and kept < min(length, self.sliding_window - 1):
            raise KvbenchError(
                f"cannot crop to {length} tokens: a sliding-window layer has already dropped tokens of that window "
                f"({self.seen} seen, window {self.sliding_window}); call activate_past_recording() before they come"
            )
        for tail in (self.tail_keys, self.tail_values):
            tail.truncate(kept)
        self.seen = length
        self._trim()

    def tensors_by_kind(self) -> TensorsByKind:
        """All of it is exact."""
        if self.tail_keys is not None and self.tail_values is not None:
            yield "exact", self.tail_keys
            yield "exact", self.tail_values

    def map_rows(self, function: Callable[[Tensor], Tensor]) -> None:
        """Keys and values alike."""
        for tail in (self.tail_keys, self.tail_values):
            if tail is not None:
                tail.map_rows(function)


def gather_slots(states: Tensor, index: Tensor) -> Tensor:
    """Pick tokens from (batch, heads, tokens, d) by ``index`` (batch, picks) or (batch, heads, picks)."""
    if index.dim() == 2:
        index = index.unsqueeze(1).expand(-1, states.shape[1], -1)
    return torch.gather(states, 2, index.unsqueeze(-1).expand(-1, -1, -1, states.shape[-1]))


def require_finite(keys: Tensor, values: Tensor) -> None:
    """Refuse what is about to be encoded if a codebook would turn NaN into a number, and nobody would notice.

    Raises:
        KvbenchError: NaN or infinite values.
    """
    for name, states in (("keys", keys), ("values", values)):
        if not bool(torch.stack(states.aminmax()).isfinite().all()):
            raise KvbenchError(
                f"the model's {name} hold NaN or infinite values in {states.dtype}, which no codec can store; "
                "check its weights, or use a dtype with more range (float32, bfloat16)"
            )


def mask_at(mask: Tensor, slots: Tensor) -> Tensor:
    """Columns of ``mask`` (batch or 1, 1, queries, tokens) at ``slots`` (batch or 1, [kv heads,] picks)."""
    if slots.dim() == 2:
        slots = slots.unsqueeze(1)
    rows, heads, picks = max(mask.shape[0], slots.shape[0]), slots.shape[1], slots.shape[2]
    index = slots.long().unsqueeze(2).expand(rows, heads, mask.shape[2], picks)
    return mask.expand(rows, heads, -1, -1).gather(-1, index)
