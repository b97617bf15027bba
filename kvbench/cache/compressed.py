"""The compressed cache layer: ``sinks | body | tail``.

``sinks`` are the first real tokens of each row and stay exact; the ``body`` is encoded; the ``tail`` holds the exact
recent window and grows until a block of tokens leaves it for the body. Keys arrive, stay and are attended after RoPE;
the codec's frame says how the body alone stores them (:mod:`kvbench.cache.block_frame`). Attention merges the three
parts by log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvbench.cache.block_frame import BlockFrame
from kvbench.cache.body import Body, kind
from kvbench.cache.body_attention import BodyReader, body_attention
from kvbench.cache.buffers import AXIS, GrowingTensor
from kvbench.cache.crop import crop
from kvbench.cache.layer import KVLayer, TensorsByKind, gather_slots, mask_at, require_finite
from kvbench.cache.rounding import stored_as
from kvbench.cache.spans import Spans
from kvbench.codecs.codec import Codec
from kvbench.codecs.quantizers.base import Stored
from kvbench.hooks.applied import AppliedRotation
from kvbench.hooks.interception import AttentionCall
from kvbench.hooks.rotary import EntryRotation, Rotator
from kvbench.kernels.decode import merged
from kvbench.kernels.reference import Part, beside_sinks, causal_mask, exact_attention
from kvbench.selectors.base import Leaving, Observed, Selector, pick


@dataclass
class _Step:
    """A forward pass: what its queries see of the exact tokens, and what encodes by it.

    ``tail`` starts at slot ``tail_start`` and is all there is where it is ``alone``. ``limits`` (queries,): where the
    body ended for each query, as decoded; None where all see all of it.
    """

    observed: Observed
    tail: tuple[Tensor, Tensor]
    tail_start: int
    alone: bool
    limits: Tensor | None = None


class CompressedLayer(KVLayer):
    """One layer's compressed cache.

    ``as_decoded`` makes a block of new tokens attend as if it had been decoded token by token: each query sees
    compressed what would have left the window by then. Teacher forcing uses it, so that its block size is no knob; such
    a block holds ``most_at_once`` tokens (None: any number). ``owns_body`` is False where a later layer has a say in
    the body: that one cuts it and arranges its rows.
    """

    def __init__(self, codec: Codec, spans: Spans, selector: Selector | None = None) -> None:
        super().__init__(spans.exact)
        stride = codec.block if selector is None else selector.budget.leaving(codec.block)
        block = -(-spans.block // stride) * stride
        self.codec, self.selector = codec, selector
        self.is_croppable = selector is None  # what had to leave for a token that is removed does not come back
        self.spans = replace(spans, block=block)
        self.as_decoded = False
        self.most_at_once: int | None = None
        self.body, self.owns_body, self.reader = Body(), True, BodyReader()
        self.block_frame: BlockFrame | None = None  # None for keys after RoPE, and until the model has run
        self._step: _Step | None = None
        self._clear()

    def _clear(self) -> None:
        self.body.truncate(0)
        self.tail_start = 0  # slot of the tail's first token
        self.sink_keys: Tensor | None = None
        self.sink_values: Tensor | None = None
        self.first: Tensor | None = None  # (batch,) slot of each row's first real token; None: slot 0 everywhere
        self.first_max = 0

    def round_prompt(self) -> None:
        """Round what is left of a prompt outside the body; nothing to do later on."""
        super().round_prompt()
        if self.sink_keys is not None and self.sink_values is not None:
            self.sink_keys = stored_as(self.sink_keys, self.exact_dtype)
            self.sink_values = stored_as(self.sink_values, self.exact_dtype)

    # ---- attention -------------------------------------------------------------------------------------------------

    def take(self, call: AttentionCall, rotator: Rotator | None, applied: AppliedRotation | None) -> None:
        """Append them to the tail, and note what queries are to see of it; ``as_decoded``, encode what has left it."""
        self.append(call.keys, call.values)
        self._set_frame(rotator)
        query = call.query
        past = self.seen - query.shape[AXIS]
        if self.tail_start == 0:
            self._find_first(call.mask)
        alone = self.tail_start == 0 and not (self.as_decoded and past)
        step = _Step(Observed(query, call.scaling, applied), self._tail(), self.tail_start, alone)
        if not alone and self.as_decoded and query.shape[AXIS] > 1:
            step.limits = self._limits(past, query)
            step.tail = step.tail[0].clone(), step.tail[1].clone()  # settling moves the tail's memory
            self._settle_as_decoded(step.observed)
        self._step = step

    def look(self, call: AttentionCall) -> Tensor:
        """Attend over sinks, body and tail."""
        step = self._step
        assert step is not None
        if step.alone:
            return self._attend_tail_only(call.query, call)
        parts = self._parts(call.query, call, step.tail, step.tail_start, step.limits)
        return beside_sinks(merged(parts, call.query, self.reading.kernels), call.sinks)

    def settle(self) -> None:
        """Encode what has left the window."""
        step, self._step = self._step, None
        assert step is not None
        if step.limits is None:
            self._settle(step.observed)
        if step.alone:
            self.round_prompt()

    def _set_frame(self, rotator: Rotator | None) -> None:
        """``rotator`` knows the positions of this cache; None where stored keys are after RoPE, or there is none."""
        self.block_frame = None if rotator is None else BlockFrame(rotator, self.codec.bands)

    def _attend_tail_only(self, query: Tensor, call: AttentionCall) -> Tensor:
        """Nothing has left the window yet: plain exact attention."""
        keys, values = self._tail()
        if query.shape[AXIS] == 1:
            part = self.attend_exact(query, keys, values, call, call.mask)
            self.attended_by = f"{part.by} {call.reads}"
            return beside_sinks(part, call.sinks)
        return exact_attention(query, *call.met(keys, values), call.scaling, call.mask, call.softcap, call.sinks)

    def _parts(
        self,
        query: Tensor,
        call: AttentionCall,
        tail: tuple[Tensor, Tensor],
        tail_start: int,
        limits: Tensor | None,
    ) -> list[Part]:
        """Partial attentions over sinks, body and tail. ``limits`` (queries,): the body's end as each query saw it."""
        mask = call.mask
        if mask is None and query.shape[AXIS] > 1:
            mask = causal_mask(query.shape[AXIS], self.seen, query.device)
        parts = [self._attend_exact_spans(query, call, tail, tail_start, mask, limits)]
        if self.body.entries:
            parts.append(self._attend_body(query, call, mask, limits))
        self.attended_by = parts[-1].by if self.body.entries else f"{parts[0].by} {call.reads}"
        return parts

    def _attend_exact_spans(
        self,
        query: Tensor,
        call: AttentionCall,
        tail: tuple[Tensor, Tensor],
        tail_start: int,
        mask: Tensor | None,
        limits: Tensor | None,
    ) -> Part:
        """Sinks and tail as one part."""
        tail_mask = None if mask is None else mask[..., tail_start:]
        if limits is not None:
            assert tail_mask is not None
            slots = torch.arange(tail_start, self.seen, device=query.device)
            tail_mask = tail_mask & (slots >= limits[:, None])
        if self.sink_keys is None or self.sink_values is None or not self.spans.sinks:
            return self.attend_exact(query, *tail, call, tail_mask)
        if mask is not None and tail_mask is not None:
            sink_mask = mask_at(mask, self.sink_slots(query.device))
            if limits is not None:
                sink_mask = sink_mask & (limits > 0)[:, None]  # earlier queries still see the sinks in the tail
            tail_mask = torch.cat([sink_mask, tail_mask], -1)
        return self.attend_exact(query, *tail, call, tail_mask, before=(self.sink_keys, self.sink_values))

    def _attend_body(self, query: Tensor, call: AttentionCall, mask: Tensor | None, limits: Tensor | None) -> Part:
        start, entries = self.spans.sinks, self.body.entries
        slots = None if self.body.slots is None else self.body.slots.view
        if mask is not None:
            mask = mask[..., start : start + entries] if slots is None else mask_at(mask, slots)
        if limits is not None:
            within = self.body_slots(query.device).unsqueeze(-2) < limits[:, None]
            mask = within if mask is None else mask & within
        if self.first is not None:  # padding and the sinks of padded rows sit among the body's slots
            real = self.body_slots(query.device).unsqueeze(-2) >= (self.first + self.spans.sinks).view(-1, 1, 1, 1)
            mask = real if mask is None else mask & real
        rotation = self._rotation()
        if self.codec.decoupled:
            query = torch.cat([query, self._before_rope(query)], -1)
        attention = body_attention(self._bound, self.reading, call.form)
        return self.reader.attend(attention, self.body, query, rotation, call.scaling, mask, call.softcap)

    def _rotation(self) -> EntryRotation | None:
        """What brings the body's keys to where queries meet them."""
        if self.block_frame is None:
            return None
        slots = None if self.body.slots is None else self.body.slots.view
        return self.block_frame.rotation(self.spans.sinks, self.body.entries, slots)

    def _before_rope(self, query: Tensor) -> Tensor:
        """The queries of the newest tokens, turned back."""
        if self.block_frame is None:
            return query
        slots = torch.arange(self.seen - query.shape[AXIS], self.seen, device=query.device)[None]
        return self.block_frame.before_rope(query, slots).to(query.dtype)

    def _limits(self, past: int, query: Tensor) -> Tensor:
        """(queries,): where the body ended for each new token, had they been decoded one by one."""
        boundaries = [self.spans.boundary(past + index, self.first_max) for index in range(query.shape[AXIS])]
        # After a crop into the body more tokens are encoded than have left the window, and they stay so.
        return torch.tensor(boundaries, device=query.device).clamp_min(self.tail_start)

    def _tail(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the tail."""
        assert self.tail_keys is not None and self.tail_values is not None
        return self.tail_keys.view, self.tail_values.view

    def _leaving(self, tokens: slice) -> tuple[Tensor, Tensor]:
        """Keys and values of ``tokens`` of the tail, in the model's dtype."""
        keys, values = (states[:, :, tokens] for states in self._tail())
        return keys.to(self.dtype), values.to(self.dtype)

    def sink_slots(self, device: torch.device) -> Tensor:
        """(1 or batch, sinks): the slots of the sink tokens."""
        slots = torch.arange(self.spans.sinks, device=device)[None]
        return slots if self.first is None else slots + self.first[:, None]

    def body_slots(self, device: torch.device) -> Tensor:
        """(1 or batch, 1 or kv heads, entries): the slots of the body's entries."""
        if self.body.slots is not None:
            return self.body.slots.view
        return torch.arange(self.spans.sinks, self.spans.sinks + self.body.entries, device=device)[None, None]

    # ---- compression -----------------------------------------------------------------------------------------------

    def load(self, keys: Tensor, values: Tensor, observed: Observed, rotator: Rotator | None) -> None:
        """Take in a prompt."""
        self._set_frame(rotator)
        self.append(keys, values)
        self._settle(observed)
        self.round_prompt()

    def _find_first(self, mask: Tensor | None) -> None:
        """Read each row's left padding off the mask's last query; a row may still be nothing but padding."""
        self.first, self.first_max = None, 0
        if mask is None:
            return
        padded = (~mask[:, 0, -1, :]).cumprod(-1).sum(-1)
        if bool((padded > 0).any()):
            self.first, self.first_max = padded, int(padded.max())

    def _settle_as_decoded(self, observed: Observed) -> None:
        """Encode as decoding would have.

        A selector sees each block alone, with the query that made it leave; an online basis is fitted to the first one.
        """
        if self.selector is None and (self.body.entries or not self.codec.row_bits):
            self._settle(observed)
            return
        new = observed.query.shape[AXIS]
        for index in range(new):
            self._settle(observed.at(index), self.seen - new + index + 1)

    def _settle(self, observed: Observed, seen: int | None = None) -> None:
        """Encode the blocks that have left the recent window once ``seen`` tokens are cached (default: all of them).

        Their exact copies are dropped.
        """
        seen = self.seen if seen is None else seen
        boundary = self.spans.boundary(seen, self.first_max)
        if boundary <= self.tail_start:
            return
        in_tail, leaving = seen - self.tail_start, boundary - self.tail_start
        keys, values = self._leaving(slice(in_tail))
        begin = 0 if self.tail_start else self.spans.sinks
        if begin < leaving and self.selector is None:
            self._append(keys[:, :, begin:leaving], values[:, :, begin:leaving])
        elif begin < leaving:
            first = self.first if self.tail_start == 0 else None  # padding leaves with the first block
            candidates = Leaving(keys, values, observed.newest(), self.tail_start, begin, leaving, first)
            self._keep(candidates, keys[:, :, begin:leaving], values[:, :, begin:leaving])
        self._leave(boundary)

    def _leave(self, boundary: int) -> None:
        """Drop the tail's exact copies before slot ``boundary``; the rows' sinks are kept."""
        assert self.tail_keys is not None and self.tail_values is not None
        tails = self.tail_keys, self.tail_values
        if self.tail_start == 0:
            slots = self.sink_slots(tails[0].data.device).expand(tails[0].data.shape[0], -1)
            self.sink_keys, self.sink_values = (gather_slots(tail.view, slots) for tail in tails)
        for tail in tails:
            tail.drop_front(boundary - self.tail_start, self.spans.recent + self.spans.block)
        self.tail_start = boundary

    def _keep(self, leaving: Leaving, keys: Tensor, values: Tensor) -> None:
        """Encode what the selector keeps of ``keys`` and ``values``, so that the whole body stays in its budget."""
        assert self.selector is not None
        budget, block, tokens = self.selector.budget, self.codec.block, keys.shape[AXIS]
        body, after_prompt = leaving.start + leaving.end - self.spans.sinks, leaving.start > 0
        keeps_all = budget.keep_decoded and after_prompt
        allowed = tokens if keeps_all else budget.kept(body, block) - self.body.entries
        count = min(allowed, tokens // block * block)
        if count > 0:
            picks = pick(self.selector, leaving, count, self.spans.sinks, self.codec.joins_heads)
            slots = (picks + leaving.start + leaving.begin).to(torch.int32)
            self._append(gather_slots(keys, picks), gather_slots(values, picks), slots)

    def _append(self, keys: Tensor, values: Tensor, slots: Tensor | None = None) -> None:
        """Encode tokens, ``keys`` after RoPE, into the body."""
        require_finite(keys, values)
        keys = self._in_frame(keys, slots)
        if not self.body.entries:
            self.body.fitted = self.codec.fit(keys, values, self._real(keys, slots))
        self.body.append(self._encode(keys, values), keys.shape[AXIS], slots)

    def _in_frame(self, keys: Tensor, slots: Tensor | None) -> Tensor:
        """``keys``, which come next in the body, as it stores them."""
        if self.block_frame is None:
            return keys
        if slots is None:
            return self.block_frame.store_following(keys, self.spans.sinks, self.body.entries)
        if self.body.slots is not None:
            slots = torch.cat([self.body.slots.view, slots], -1)
        return self.block_frame.store(keys, slots, self.body.entries)

    def _encode(self, keys: Tensor, values: Tensor) -> Stored:
        return self._bound.encode(keys, values)

    @property
    def _bound(self) -> Codec:
        """The codec as it was fitted to this sequence."""
        return self.codec.bound(self.body.fitted)

    def _real(self, keys: Tensor, slots: Tensor | None) -> Tensor | None:
        """(batch, 1 or kv heads, tokens): which of the body's first ``keys`` are neither padding nor sinks."""
        if self.first is None:
            return None
        start = self.spans.sinks
        if slots is None:
            slots = torch.arange(start, start + keys.shape[AXIS], device=keys.device)[None, None]
        return slots >= (self.first + start).view(-1, 1, 1)

    # ---- cache surgery ---------------------------------------------------------------------------------------------

    def truncate(self, length: int) -> None:
        """Forget slots from ``length`` on (:mod:`kvbench.cache.crop`)."""
        crop(self, length)

    def decoded_body(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the body, decoded, keys after RoPE; empty tensors without a body."""
        if not self.body.entries:
            assert self.sink_keys is not None and self.sink_values is not None
            return self.sink_keys[:, :, :0].to(self.dtype), self.sink_values[:, :, :0].to(self.dtype)
        keys, values = self._bound.decode(self.body.view())
        rotation = self._rotation()
        if rotation is not None:
            keys = rotation(keys, 0, self.body.entries)
        return keys.to(self.dtype), values.to(self.dtype)

    def begin_tail(self, slot: int, keys: Tensor, values: Tensor) -> None:
        """Make these the exact tail, from ``slot`` on."""
        capacity = self.spans.recent + self.spans.block
        self.tail_start = slot
        self.tail_keys = GrowingTensor.with_capacity(stored_as(keys, self.exact_dtype), capacity)
        self.tail_values = GrowingTensor.with_capacity(stored_as(values, self.exact_dtype), capacity)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._clear()

    def tensors_by_kind(self) -> TensorsByKind:
        """Sinks and tail are exact; the body's tensors say what they are."""
        if self.tail_keys is not None and self.tail_values is not None:
            yield "exact", self.tail_keys
            yield "exact", self.tail_values
        if self.sink_keys is not None and self.sink_values is not None:
            yield "exact", self.sink_keys
            yield "exact", self.sink_values
        if self.first is not None:
            yield "positions", self.first
        for name, buffer in self.body.buffers().items():
            yield kind(name), buffer
        for tensor in self.body.fitted.values():
            yield "scales", tensor

    def map_rows(self, function: Callable[[Tensor], Tensor]) -> None:
        """Rows of sinks, body, tail and padding alike."""
        for tail in (self.tail_keys, self.tail_values):
            if tail is not None:
                tail.map_rows(function)
        if self.sink_keys is not None and self.sink_values is not None:
            self.sink_keys, self.sink_values = function(self.sink_keys), function(self.sink_values)
        if self.first is not None:
            self.first = function(self.first)
        if self.owns_body:
            self.body.map_rows(function)
