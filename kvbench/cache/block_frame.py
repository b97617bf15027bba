"""Bringing rotated keys into the frame that a cache's body stores them in (:mod:`kvbench.codecs.frame`), and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.codecs.frame import Bands
from kvbench.hooks.interception import rotate
from kvbench.hooks.rotary import EntryRotation, Rotator, StaticRotator, turned_back
from kvbench.hooks.rotations import Rotation
from kvbench.hooks.turns import Rotary

FEW = 256
"""Tokens whose rotation is kept from layer to layer; of more, such as a prompt, it would be memory of the cache."""


@dataclass(frozen=True)
class BlockFrame:
    """The frame of the body of one cache, whose positions and RoPE tables ``rotator`` knows.

    Keys are stored relative to the start of their block, as ``bands`` say, or before RoPE (None: as if every token were
    a block). A key is turned back by the model's own rotation, at its position or at that of its block's first entry,
    and forth by the same, so nothing is lost whatever the positions are: with padding, after eviction, under any RoPE.
    ``slots`` (1 or batch, 1 or kv heads, entries) below are those of all entries up to the last one in question.
    """

    rotator: Rotator | StaticRotator
    bands: Bands | None = None

    def store(self, keys: Tensor, slots: Tensor, start: int) -> Tensor:
        """``keys`` (batch, kv heads, tokens, head_dim) after RoPE, the entries from ``start`` on, as they are stored.

        In fp32, or fp64 for keys in that.
        """
        return self._turned(keys, slots, start, inverse=True)

    def store_following(self, keys: Tensor, first: int, start: int) -> Tensor:
        """:meth:`store` where entries follow one another, 0 at slot ``first``: layers of a step turn by one table."""
        return self._following(keys, first, start, inverse=True)

    def restore_following(self, keys: Tensor, first: int, start: int) -> Tensor:
        """The inverse of :meth:`store_following`."""
        return self._following(keys, first, start, inverse=False)

    def restore(self, keys: Tensor, slots: Tensor, start: int) -> Tensor:
        """The inverse of :meth:`store`."""
        return self._turned(keys, slots, start, inverse=False)

    def before_rope(self, states: Tensor, slots: Tensor) -> Tensor:
        """``states`` (batch, any heads, tokens, head_dim), rotated as the ``slots`` (…, tokens) are, turned back.

        In fp32, or fp64 for states in that.
        """
        return self._at(states, slots, inverse=True)

    def rotation(self, start: int, entries: int, slots: Tensor | None) -> EntryRotation:
        """What brings stored keys to where queries meet them; without ``slots``, entries follow from ``start`` on."""
        assert isinstance(self.rotator, Rotator)
        if self.bands is None:
            return EntryRotation(self.rotator, start, entries, slots)
        return BlockRotation(self.rotator, self.bands, start, entries, slots)

    def _following(self, keys: Tensor, first: int, start: int, inverse: bool) -> Tensor:
        rotator = self.rotator
        assert isinstance(rotator, Rotator)
        if self.bands is not None and rotator.turn is None:  # tables that say nothing of single dimensions
            slots = torch.arange(first, first + start + keys.shape[2], device=keys.device)[None, None]
            return self._turned(keys, slots, start, inverse)
        keys = keys.to(torch.promote_types(keys.dtype, torch.float32))
        count, dtype, device = keys.shape[2], keys.dtype, keys.device

        def make() -> Rotation:
            rotation = self._rotation(rotator, first, torch.arange(start, start + count, device=device))
            return turned_back(rotation, dtype) if inverse else rotation

        key = inverse, self.bands, first, start, count, dtype
        rotation = rotator.remembered(key, make) if count <= FEW else make()
        return rotate(rotator.module, keys, rotation, rotator.rotary_dims)

    def _rotation(self, rotator: Rotator, first: int, entries: Tensor) -> Rotation:
        """What rotates stored keys at ``entries``: fast dimensions as their tokens, the others as their block."""
        at_token = rotator.rotation(first + entries)
        if self.bands is None:
            return at_token
        at_block = rotator.rotation(first + entries // self.bands.block * self.bands.block)
        fast = torch.zeros(at_token[0].shape[-1], dtype=torch.bool, device=entries.device)
        fast[list(self.bands.fast)] = True
        cos, sin = (torch.where(fast, *both) for both in zip(at_token, at_block, strict=True))
        return cos, sin

    def _turned(self, keys: Tensor, slots: Tensor, start: int, inverse: bool) -> Tensor:
        entries = torch.arange(start, start + keys.shape[2], device=keys.device)
        at_token = self._at(keys, slots[..., entries], inverse)
        if self.bands is None:
            return at_token
        at_block = self._at(keys, slots[..., entries // self.bands.block * self.bands.block], inverse)
        at_block[..., self.bands.fast] = at_token[..., self.bands.fast]
        return at_block

    def _at(self, states: Tensor, slots: Tensor, inverse: bool) -> Tensor:
        return self.rotator.at(states.to(torch.promote_types(states.dtype, torch.float32)), slots, inverse)


class BlockRotation(EntryRotation):
    """Brings keys of a cache's body, stored in ``bands``, to where queries meet them.

    ``slots`` (1 or batch, 1 or kv heads, entries) of all entries; None: one after the other from ``start`` on.
    """

    def __init__(self, rotator: Rotator, bands: Bands, start: int, entries: int, slots: Tensor | None) -> None:
        super().__init__(rotator, start, entries, slots)
        self.frame, self._block = BlockFrame(rotator, bands), bands.block

    def __call__(self, keys: Tensor, begin: int, end: int) -> Tensor:
        """Restore ``keys`` (batch, kv heads, tokens, head_dim) of the entries [begin, end)."""
        if self._slots is None:
            return self.frame.restore_following(keys, self._start, begin)
        return self.frame.restore(keys, self._slots[..., :end], begin)

    def references(self, groups: int) -> Rotary | None:
        """The rotation of every block's first entry; else as :meth:`rotary`."""
        return self.rotary(groups, self._block)
