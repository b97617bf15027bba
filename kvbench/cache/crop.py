"""Forgetting the last tokens of a compressed layer, wherever in sinks, body or tail the cut falls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from kvbench.cache.compressed import CompressedLayer


def crop(layer: CompressedLayer, length: int) -> None:
    """Forget slots from ``length`` on.

    Inside the body the cut falls on a block: the rest of that block is decoded back into the tail. With a selector
    the tokens it had kept of the cut block are forgotten too.
    """
    start, block = layer.spans.sinks, layer.codec.block
    if length >= layer.tail_start:
        for tail in (layer.tail_keys, layer.tail_values):
            assert tail is not None
            tail.truncate(length - layer.tail_start)
    elif layer.selector is not None:
        _cut_selected(layer, length) if length >= start + layer.first_max else _cut_to_tail(layer, length)
    else:
        keep = start + (length - start) // block * block
        _cut_block(layer, keep, length) if keep >= start + layer.first_max else _cut_to_tail(layer, length)
    layer.seen = length


def _cut_block(layer: CompressedLayer, keep: int, length: int) -> None:
    """Slots from ``keep`` to ``length`` move from the body to the tail."""
    start = layer.spans.sinks
    keys, values = (states[:, :, keep - start : length - start] for states in layer.decoded_body())
    _truncate_body(layer, keep - start)
    layer.begin_tail(keep, keys, values)


def _cut_selected(layer: CompressedLayer, length: int) -> None:
    """Whole blocks of selected entries before slot ``length`` stay; the tail begins empty."""
    slots, block = layer.body.slots, layer.codec.block  # no slots while nothing was kept
    before = 0 if slots is None else int((slots.view < length).sum(-1).min())
    assert layer.tail_keys is not None and layer.tail_values is not None
    empty = layer.tail_keys.view[:, :, :0], layer.tail_values.view[:, :, :0]
    _truncate_body(layer, before // block * block)
    layer.begin_tail(length, *empty)


def _cut_to_tail(layer: CompressedLayer, length: int) -> None:
    """Cut inside or next to some row's sinks: everything left goes back to an exact tail.

    Rows with less padding than others have tokens in the body by then. Padding, and what a selector dropped, come
    back as zeros.
    """
    assert layer.sink_keys is not None and layer.sink_values is not None
    device = layer.sink_keys.device
    sinks = layer.sink_keys.to(layer.dtype), layer.sink_values.to(layer.dtype)
    tails: list[Tensor] = []
    for exact, decoded in zip(sinks, layer.decoded_body(), strict=True):
        whole = exact.new_zeros(*exact.shape[:2], layer.tail_start, exact.shape[-1])
        for slots, states in ((layer.body_slots(device), decoded), (layer.sink_slots(device)[:, None], exact)):
            whole.scatter_(2, slots.long().unsqueeze(-1).expand_as(states), states)
        tails.append(whole[:, :, :length])
    _truncate_body(layer, 0)
    layer.sink_keys = layer.sink_values = None
    layer.begin_tail(0, tails[0], tails[1])


def _truncate_body(layer: CompressedLayer, entries: int) -> None:
    if layer.owns_body:
        layer.body.truncate(entries)
