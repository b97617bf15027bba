"""Turning keys back to before RoPE, or to another position, where a cache's body stores them so, and forth again.

The attached model keeps one table of cos and sin per RoPE group, indexed by *position* and filled from what the model
itself hands to its layers, so YaRN factors and per-layer-type tables come out exactly. A cache keeps only the positions
of its tokens, one row for the whole batch unless rows differ (left padding).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from copy import copy, deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kvbench.errors import UnsupportedModelError
from kvbench.hooks.geometry import LayerGeometry
from kvbench.hooks.interception import rotate
from kvbench.hooks.rotations import Rotation
from kvbench.hooks.turns import Rotary, Turn

Made = TypeVar("Made")

SAME_TURN = 0.02
"""Cosines and sines of one position agree within this, in 16 bit too; those of the next position do not."""


class RotaryTable:
    """cos and sin by position for one RoPE group; model-level, shared by all caches of an attached model.

    Several threads may fill it. A position has one rotation: models that turn one position in several ways, such as
    those of image patches, are refused.
    """

    def __init__(self) -> None:
        self.cos: Tensor | None = None
        self.sin: Tensor | None = None
        self._latest: Callable[[], Tensor | None] = lambda: None
        self._checked, self._pairs = (0, 0), False  # which tables, by their ids, turn pairs as a Turn says
        self._remembered: tuple[Callable[[], Tensor | None], dict[tuple[object, ...], Any]] = lambda: None, {}
        self._lock = threading.Lock()

    def fill(self, positions: Tensor, rotation: Rotation) -> None:
        """Record the rotation of ``positions`` (rows, tokens); ``rotation`` is (rows or 1, tokens, dims) each.

        Raises:
            UnsupportedModelError: a position has another rotation already.
        """
        cos, sin = rotation
        with self._lock:
            if cos is self._latest():  # every layer of a forward pass hands in the same tensor
                return
            needed = int(positions.max()) + 1
            if self.cos is None or self.sin is None or needed > self.cos.shape[0]:
                self._grow(needed, cos)
            assert self.cos is not None and self.sin is not None
            rows = positions.expand(cos.shape[0], -1)
            tables = (self.cos, cos), (self.sin, sin)
            differs = [((table[rows] - turn).abs() > SAME_TURN).any() for table, turn in tables]  # not where it is NaN
            for table, turn in tables:
                table[rows] = turn
            differs += [((table[rows] - turn).abs() > SAME_TURN).any() for table, turn in tables]
            if bool(torch.stack(differs).any()):
                raise UnsupportedModelError(
                    "this model turns keys of one position in several ways (positions of images beside those of "
                    "text?), so keys stored before RoPE cannot be rotated again; choose a compressor with keys after it"
                )
            self._latest = weakref.ref(cos)  # a strong one would keep a whole prompt's table alive, uncounted

    def turns_pairs(self, turn: Turn) -> bool:
        """Whether there is a column for every dimension of ``turn``, and both of a pair turn by the same angle."""
        if self.cos is None or self.sin is None or self.cos.shape[-1] != len(turn.partners):
            return False
        if self._checked != (id(self.cos), id(turn)):
            partners = list(turn.partners)
            differ = [((table - table[:, partners]).abs() > 0).any() for table in (self.cos, self.sin)]  # not at NaN
            self._checked, self._pairs = (id(self.cos), id(turn)), not bool(torch.stack(differ).any())
        return self._pairs

    def lookup(self, positions: Tensor) -> Rotation:
        """cos and sin (rows, tokens, dims) at ``positions`` (rows, tokens)."""
        assert self.cos is not None and self.sin is not None
        index = positions.long()
        return self.cos[index], self.sin[index]

    def remembered(self, positions: Tensor, key: tuple[object, ...], make: Callable[[], Made]) -> Made:
        """What ``make`` makes of the rotation of ``positions``, the very same tensor: once for all layers of a step.

        Kept here, with the tables, until other positions come: it is no memory of a cache.
        """
        latest, made = self._remembered
        if latest() is not positions:
            self._remembered = latest, made = weakref.ref(positions), {}
        if key not in made:
            made[key] = make()
        return made[key]  # type: ignore[no-any-return]

    @property
    def nbytes(self) -> int:
        """Bytes of both tables."""
        return sum(table.untyped_storage().nbytes() for table in (self.cos, self.sin) if table is not None)

    def _grow(self, needed: int, like: Tensor) -> None:
        for name in ("cos", "sin"):
            old = getattr(self, name)
            shape = needed + needed // 16, like.shape[-1]
            grown = torch.full(shape, torch.nan, dtype=like.dtype, device=like.device)
            if old is not None:
                grown[: old.shape[0]] = old
            setattr(self, name, grown)


class Positions:
    """The position of every cached token, (rows, tokens) int32; one row while all rows agree."""

    def __init__(self) -> None:
        self.index: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens recorded."""
        return 0 if self.index is None else self.index.shape[1]

    def extend(self, seen: int, positions: Tensor) -> None:
        """Record ``positions`` (rows, new tokens) after ``seen`` tokens; a no-op when another layer did so already."""
        if self.length > seen:
            return
        new = positions.to(torch.int32)
        if new.shape[0] > 1 and bool((new == new[:1]).all()):
            new = new[:1]
        if self.index is None:
            self.index = new.clone()
            return
        rows = max(self.index.shape[0], new.shape[0])
        self.index = torch.cat([self.index.expand(rows, -1), new.expand(rows, -1)], 1)

    def map_rows(self, function: Callable[[Tensor], Tensor]) -> None:
        """Select or repeat rows along with the batch."""
        if self.index is not None and self.index.shape[0] > 1:
            self.index = function(self.index)

    def truncate(self, length: int) -> None:
        """Forget tokens from ``length`` on."""
        if self.index is not None:
            self.index = self.index[:, :length].clone() if length else None


class Rotator:
    """Rotates one layer's keys at their slots, and back: geometry, its module's RoPE, a table, a cache's positions."""

    def __init__(self, module: nn.Module, geometry: LayerGeometry, table: RotaryTable, positions: Positions) -> None:
        self.module, self.rotary_dims, self.table, self._positions = module, geometry.rotary_dims, table, positions
        self._turn = geometry.turn

    @property
    def turn(self) -> Turn | None:
        """How it rotates, dimension by dimension of its table; None where only the model's function knows."""
        return self._turn if self._turn is not None and self.table.turns_pairs(self._turn) else None

    def slots(self, keys: Tensor, start: int, stop: int) -> Tensor:
        """Rotate ``keys`` (batch, kv heads, tokens, d) that sit at slots [start, stop)."""
        index = self._positions.index
        assert index is not None
        return rotate(self.module, keys, self.table.lookup(index[:, start:stop]), self.rotary_dims)

    def at(self, keys: Tensor, slots: Tensor, inverse: bool = False) -> Tensor:
        """Rotate ``keys`` (batch, kv heads, tokens, d) at ``slots`` (batch, tokens) or (batch, kv heads, tokens).

        One row or head of slots stands for all. ``inverse`` turns rotated keys back.
        """
        index = self._positions.index
        assert index is not None
        if slots.dim() == 2 or slots.shape[1] == 1:
            slots = slots.flatten(1)
            rows = max(index.shape[0], slots.shape[0])
            rotation = self.table.lookup(index.expand(rows, -1).gather(1, slots.expand(rows, -1).long()))
            return rotate(
                self.module, keys, turned_back(rotation, keys.dtype) if inverse else rotation, self.rotary_dims
            )
        batch, heads, tokens, dim = keys.shape
        slots = slots.expand(batch, -1, -1).flatten(1).long()
        rotation = self.table.lookup(index.expand(batch, -1).gather(1, slots).reshape(batch * heads, tokens))
        rotation = turned_back(rotation, keys.dtype) if inverse else rotation
        rotated = rotate(self.module, keys.reshape(batch * heads, 1, tokens, dim), rotation, self.rotary_dims)
        return rotated.view(batch, heads, tokens, dim)

    def rotary(self, turn: Turn, slots: slice) -> Rotary:
        """What a kernel rotates keys at ``slots`` by, all heads alike: the same object for all layers of a step."""
        cos, sin = self.table.cos, self.table.sin
        assert cos is not None and sin is not None
        key = "rotary", id(cos), id(turn), slots.start, slots.stop, slots.step  # ids of what the rotary keeps alive
        return self.remembered(key, lambda: Rotary(turn, cos, sin, self.positions[:, None, slots]))

    def rotation(self, slots: Tensor) -> Rotation:
        """The rotation of the tokens at ``slots`` (tokens,), (1 or batch, tokens, dims) each."""
        return self.table.lookup(self.positions[:, slots])

    def remembered(self, key: tuple[object, ...], make: Callable[[], Made]) -> Made:
        """What ``make`` makes of the rotations of this cache's tokens, by :meth:`RotaryTable.remembered`."""
        return self.table.remembered(self.positions, key, make)

    @property
    def positions(self) -> Tensor:
        """The position of every slot, (1 or batch, tokens) int32."""
        assert self._positions.index is not None
        return self._positions.index

    def __deepcopy__(self, memo: dict[int, Any]) -> Rotator:
        """Model and table stay shared; the positions are those of the copied cache."""
        twin = copy(self)
        twin._positions = deepcopy(self._positions, memo)
        return twin


def turned_back(rotation: Rotation, dtype: torch.dtype) -> Rotation:
    """The inverse of a rotation of keys of ``dtype`` that may also scale (YaRN), in at least fp32."""
    wide = torch.promote_types(dtype, torch.float32)
    cos, sin = (part.to(torch.promote_types(part.dtype, wide)) for part in rotation)
    square = cos.square() + sin.square()
    return cos / square, -sin / square


class EntryRotation:
    """Rotates keys of a cache's body, whose entries are at ``slots`` (batch, kv heads, entries).

    Without ``slots`` they are one after the other from ``start`` on.
    """

    def __init__(self, rotator: Rotator, start: int, entries: int, slots: Tensor | None) -> None:
        self._rotator, self._start, self._entries, self._slots = rotator, start, entries, slots

    @property
    def turn(self) -> Turn | None:
        """:attr:`Rotator.turn`."""
        return self._rotator.turn

    def __call__(self, keys: Tensor, begin: int, end: int) -> Tensor:
        """Rotate ``keys`` (batch, kv heads, tokens, head_dim) that sit at entries [begin, end)."""
        if self._slots is None:
            return self._rotator.slots(keys, self._start + begin, self._start + end)
        return self._rotator.at(keys, self._slots[:, :, begin:end].expand(-1, keys.shape[1], -1))

    def rotary(self, groups: int, every: int = 1) -> Rotary | None:
        """What a kernel rotates by, for ``groups`` of heads that hold the same tokens each; None without a turn.

        Of the entries, one in ``every``.
        """
        table, turn = self._rotator.table, self.turn
        if turn is None or table.cos is None or table.sin is None:
            return None
        if self._slots is None:
            return self._rotator.rotary(turn, slice(self._start, self._start + self._entries, every))
        slots, positions = self._slots[:, :: max(1, self._slots.shape[1] // groups), ::every], self._rotator.positions
        entries = positions.expand(slots.shape[0], -1).gather(1, slots.flatten(1).long()).view(slots.shape)
        return Rotary(turn, table.cos, table.sin, entries)


class StaticTable:
    """cos and sin (capacity, dims) by position, for one row of positions 0, 1, 2, …: a graph writes them in place."""

    def __init__(self, table: RotaryTable, tokens: int, capacity: int) -> None:
        assert table.cos is not None and table.sin is not None
        self.cos, self.sin = (_widened(rows[:tokens], capacity) for rows in (table.cos, table.sin))

    def write(self, position: Tensor, rotation: Rotation) -> None:
        """Record the ``rotation``, (any, 1, dims) each, of ``position`` ()."""
        for rows, new in zip((self.cos, self.sin), rotation, strict=True):
            rows.index_copy_(0, position.view(1), new[0])


class StaticRotator:
    """Rotates keys of one layer whose slots are their positions, and turns them back."""

    def __init__(self, rotator: Rotator, table: StaticTable) -> None:
        self.module, self.rotary_dims, self.table = rotator.module, rotator.rotary_dims, table

    def at(self, keys: Tensor, slots: Tensor, inverse: bool = False) -> Tensor:
        """Rotate ``keys`` (batch, kv heads, tokens, d) at ``slots`` (…, tokens), the same for all rows and heads.

        Those past the end are not in use. ``inverse`` turns rotated keys back.
        """
        index = slots.flatten().clamp_max(self.table.cos.shape[0] - 1)
        rotation = self.table.cos[index][None], self.table.sin[index][None]
        return rotate(self.module, keys, turned_back(rotation, keys.dtype) if inverse else rotation, self.rotary_dims)


def _widened(table: Tensor, capacity: int) -> Tensor:
    widened = table.new_zeros(capacity, table.shape[-1])
    widened[: table.shape[0]] = table
    return widened
