"""Decode attention on stored codes on the GPU: what the Triton kernel is told, and its results as tensors."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kvbench.codecs.kernel_view import Coded
from kvbench.codecs.packing import TOKENS_PER_GROUP
from kvbench.kernels.rebuilding import KeyRotation, RebuiltKeys
from kvbench.kernels.reference import Partial
from kvbench.kernels.triton.coded_kernel import attend
from kvbench.kernels.triton.rebuilt import RebuiltSide, absorbed_queries, rebuilt_side
from kvbench.kernels.triton.sides import Side, side_of, side_readable
from kvbench.kernels.triton.splits import Out, as_mask, cut, merged, on
from kvbench.kernels.triton.unpack_plan import Dims, Program


class _Queries(NamedTuple):
    """Queries for codes (batch, groups, queries, rank), contiguous, and what scores are scaled by.

    With ``shift`` (batch, groups, blocks, queries), which is added to scores before they are scaled, those of every
    block of tokens: (batch, groups, blocks, queries, rank). ``rows``: queries, as often as a tile has blocks.
    """

    data: Tensor
    groups: int
    rows: int
    scaling: float
    shift: Tensor | None


def readable(keys: Coded, values: Coded) -> bool:
    """Whether the Triton kernel can read both sides, by :func:`side_readable`: only keys have scales by block."""
    return side_readable(keys) and side_readable(values) and values.blocks is None


@dataclass(frozen=True, eq=False)
class CodedAttention:
    """What :class:`kvbench.kernels.cpu.coded.CodedAttention` is on the CPU, for queries of exactly this ``shape``.

    Queries (batch, …, key rank), bf16, fp16 or fp32, of ``shape`` (batch, groups, rows, key rank) come in the keys'
    latents, and outputs (batch, …, value rank) are sums of the values': there are no ``bases``. With ``rebuilt`` keys
    queries are those of the heads; ``keys`` beside them are the same codes, of which all other dimensions are absorbed.
    Sides must be :func:`readable`.
    """

    shape: tuple[int, int, int, int]
    keys: Coded | None
    values: Coded
    tokens: int
    scaling: float
    bases: tuple[None, None] = (None, None)
    rebuilt: RebuiltKeys | None = None

    def __call__(
        self, query: Tensor, mask: Tensor | None = None, rotated: KeyRotation | None = None, by: str = "triton"
    ) -> Partial:
        """Attention of ``query``; ``mask`` is boolean, broadcastable to (batch, groups or 1, 1, tokens).

        The output and its log-sum-exp are fp32.
        """
        batch, groups, rows, _ = self.shape
        source = self.keys if self.rebuilt is None else self.rebuilt.coded
        assert source is not None
        (keys, key_plan), (values, value_plan) = side_of(source), side_of(self.values)
        queries = query.reshape(self.shape).contiguous()
        side, dims = self._rebuilt(queries, rotated)
        block = self._block(source)
        tile = 16 if block or dims or _demanding(keys) or _demanding(values) else 32  # as many groups as registers hold
        phases = _phases(block, tile * TOKENS_PER_GROUP)
        how = cut(batch, groups, phases * rows, triton.cdiv(self.tokens, tile * TOKENS_PER_GROUP), query.device)
        program = Program(
            rows=how.rows,
            tile=tile,
            keys=key_plan,
            values=value_plan,
            precise=query.dtype == torch.float32,
            absorbs=self.keys is not None,
            block=block,
            phases=phases,
            dims=dims,
        )
        shape = (batch, groups, how.splits * phases, rows)
        empty = torch.zeros if 0 in self.values.widths else torch.empty  # components without bits are not written
        out = Out(empty(*shape, values.rank, device=query.device), torch.empty(shape, device=query.device))
        with on(query.device):
            data, shift = self._absorbed(queries, rotated, block)
            attend[(how.splits, groups * how.blocks, batch)](
                _Queries(data, groups, phases * rows, float(self.scaling), shift), keys, values, side,
                as_mask(mask, batch, groups), out, self.tokens, program, **_launch(dims),
            )  # fmt: skip
            part = merged(out)
        heads = query.shape[:-1]
        return Partial(part.output.reshape(*heads, values.rank), part.lse.reshape(heads), by)

    def __deepcopy__(self, memo: dict[int, Any]) -> CodedAttention:
        """Of the same codes, where they are."""
        return self

    def _rebuilt(self, query: Tensor, rotated: KeyRotation | None) -> tuple[RebuiltSide | None, tuple[Dims, ...]]:
        """What the kernel is told of rebuilt keys, and which dimensions those are."""
        if self.rebuilt is None or self.rebuilt.dims == ():
            return None, ()
        rotary = None if rotated is None else rotated.keys
        return rebuilt_side(self.rebuilt, query, rotary, float(self.scaling))

    def _absorbed(self, query: Tensor, rotated: KeyRotation | None, block: int) -> tuple[Tensor, Tensor | None]:
        """Queries for the codes, and what each block's mean adds to the scores."""
        if self.keys is None or self.rebuilt is None:
            return query, None
        assert rotated is not None and rotated.blocks is not None, "queries are turned back to every block"
        return absorbed_queries(self.rebuilt, query, rotated.blocks, triton.cdiv(self.tokens, block))

    def _block(self, source: Coded) -> int:
        """Tokens that queries are made anew for; 0: never."""
        if self.rebuilt is not None:
            return 0 if self.keys is None else self.rebuilt.block
        return 0 if source.blocks is None else source.blocks.tokens


def triton_coded_attention(
    query: Tensor, keys: Coded, values: Coded, tokens: int, scaling: float, mask: Tensor | None = None
) -> Partial:
    """:class:`CodedAttention` of ``query`` (batch, groups, rows, key rank), once."""
    shape = query.shape[0], query.shape[1], query.shape[2], query.shape[3]
    return CodedAttention(shape, keys, values, tokens, scaling)(query, mask)


def _demanding(side: Side) -> bool:
    """Whether unpacking takes many registers."""
    return side.table is not None or side.codes.shape[-1] > 1024


def _phases(block: int, tile: int) -> int:
    """Blocks that a tile of so many tokens may touch, wherever it begins."""
    return 1 if block == 0 else (block - gcd(block, tile) + tile - 1) // block + 1


def _launch(dims: tuple[Dims, ...]) -> dict[str, int]:
    """Rebuilt keys take registers, of twice as many threads, and their decoder the shared memory of further stages."""
    return {"num_stages": 1, "num_warps": 8} if dims else {"num_stages": 2}
