"""What the CPU kernels are told, by name: the order of the fields stands here and nowhere else.

A record is a :class:`typing.NamedTuple` of integers on the side that calls; :func:`pack` lays records out one after the
other as 64-bit integers, and a kernel reads them by the same names through the numpy dtypes at the end of this file.
Addresses, strides, sizes, counts and flags are all integers; strides are in bytes unless said, and what is not there
has address 0.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Claims(NamedTuple):
    """How threads share a job: each claims ``chunk`` of the ``units`` from ``next_unit`` on, until none are left."""

    next_unit: int
    units: int
    chunk: int


class CodedSide(NamedTuple):
    """Packed keys or values, how their codes become numbers, and the basis that the numbers are latents in.

    A *column* is one byte per token after unpacking; levels off the byte grid take two columns a component. Columns
    come in *channel groups*, which have scales and zeros of their own.
    """

    codes: int
    row_stride: int
    head_stride: int
    group_bytes: int
    """Bytes of eight packed tokens."""
    columns: int
    """Columns that are used."""
    padded_columns: int
    """All columns: a multiple of 16."""
    scale: int
    """fp16 or fp32 scales; zeros at ``zero`` lie alike. Their strides are in elements."""
    zero: int
    scale_in_fp32: int
    scale_row_stride: int
    scale_head_stride: int
    channel_groups: int
    column_groups: int
    """Groups of columns that are multiplied by themselves: the channel groups, then once more for second bytes."""
    group_columns: int
    """Columns of such a group."""
    block_tokens: int
    """Tokens, a multiple of 16, that share a scale and a zero of every component; 0: there are none."""
    block_scale: int
    """(blocks, components) fp16; zeros at ``block_zero`` lie alike. Their strides are in elements."""
    block_zero: int
    block_row_stride: int
    block_head_stride: int
    direct: int
    """Codes are multiplied where they lie: nothing needs unpacking."""
    nibbles: int
    """They are all of 4 bits."""
    flip: int
    """Bits to flip in four codes at once, which makes unsigned bytes of signed ones."""
    affine: int
    """Scale and zero (2,) fp32 of all tokens, where there is no ``scale``."""
    unpack_plan: int
    """An :class:`UnpackPlan`."""
    components: int
    ordered_columns: int
    """How many columns, the first ones, are the first components in order."""
    component_of_column: int
    """(columns,) int64."""
    column_scale: int
    """(columns,) fp32: what one unit of a column's byte stands for; 0 where that is 1."""
    decoder: int
    """(groups, components, heads, head_dim); its strides are in elements. 0: numbers are keys or values themselves."""
    decoder_group_stride: int
    decoder_row_stride: int
    decoder_head_stride: int
    mean: int
    mean_group_stride: int
    mean_head_stride: int
    head_dim: int
    """Components of a head of the queries, or of the outputs."""
    queries_per_head: int
    """Rows of queries per KV head."""
    by_matrices: int
    """All rows of queries are multiplied at once, by matrices (:mod:`kvbench.kernels.cpu.llvm.matrix_ops`)."""
    basis_in_fp16: int
    """Decoder and mean are in fp16, not fp32."""


class RebuiltSide(NamedTuple):
    """Keys that are rebuilt from a :class:`CodedSide` of their own, rotated, and scored.

    Their codes are multiplied in *slices* of COLUMNS by signed bytes (:mod:`kvbench.kernels.cpu.key_decoder`).
    Arrays are dense; ``dims`` is a multiple of DIMS, those that are rebuilt at once.
    """

    decoder: int
    """int8 (groups, heads, dims / DIMS, slices, DIMS, COLUMNS); 0: no keys are rebuilt."""
    slices: int
    heads: int
    """KV heads of a group."""
    dims: int
    """Key dimensions per head that are rebuilt."""
    rotated: int
    """How many of them, the first ones, are rotated."""
    offsets: int
    """(slices,) int64: where a slice's bytes lie in a tile in steps of four columns."""
    counts: int
    """(channel groups, 3) int64: the first slice, slices that count 256 times, other slices."""
    unit: int
    """(groups, heads, dims) fp32: what one unit of the sums stands for; ``mean`` is alike."""
    mean: int
    start: int
    """(channel groups, groups, heads, dims) int32: what the sums start from."""
    zero_weight: int
    """(channel groups, groups, heads, dims) fp32: what a token's zero is multiplied by."""
    groups: int
    query_dims: int
    """(dims,) int64: the component of the query that each meets."""
    partners: int
    """(rotated,) int64: offsets in bytes of the row that each is rotated with; ``turns``: of its cos and sin."""
    turns: int
    signs: int
    """(rotated,) fp32."""
    gathered: int
    """How many dimensions of the tables, the first ones, they are turned by."""
    vectors: int
    """(vector_count,) int64: which sixteens of columns have factors other than 0."""
    vector_count: int
    cos: int
    """(table_rows, table_dims) fp32 each."""
    sin: int
    table_rows: int
    table_dims: int
    positions: int
    """int32, entries side by side."""
    position_row_stride: int
    position_head_stride: int


class TurnedQuery(NamedTuple):
    """Queries that are turned back to the first position of every block before they are taken into the latents."""

    block: int
    """Tokens of a block, a multiple of a tile's; 0: queries are taken as they are."""
    dims: int
    """(absorbed,) int64: the components that are taken into the latents, all that do not meet rebuilt keys."""
    absorbed: int
    """How many they are."""
    rotated: int
    """How many of them, the first ones, are turned."""
    partners: int
    """(rotated,) int64: the component that each is turned with."""
    signs: int
    """(rotated,) fp32."""
    decoder: int
    """(groups, heads, absorbed, padded columns of keys): the keys' basis by dimension and column, in its dtype."""
    scale: int
    """(padded columns of keys,) fp32: what one unit of a column's byte stands for; 0 in columns that are not used."""
    mean: int
    """(groups, heads, absorbed) fp32."""
    cos: int
    """(table_rows, table_dims) fp32 each."""
    sin: int
    table_rows: int
    table_dims: int
    positions: int
    """int32, blocks side by side."""
    position_row_stride: int
    position_head_stride: int


class CodedJob(NamedTuple):
    """Decode attention on packed codes: units are (batch · heads · splits).

    Records follow: of keys that queries are taken into the latents for, of keys that are rebuilt, of what these are
    rebuilt from, of how queries are turned before they are taken into the latents, of keys that are floating-point
    numbers, and of values. Scores of all kinds of keys add up; any may be missing (``codes``, ``states`` 0).
    """

    splits: int
    tokens: int
    heads: int
    """Head groups that have codes of their own."""
    rows: int
    """Queries per head group."""
    query: int
    """(batch, heads, rows, query_width) fp32."""
    query_width: int
    absorbed_from: int
    """The first component of a query that is taken into the latents; those before meet rebuilt or exact keys."""
    scaling: int
    """The bits of an fp32 number."""
    mask: int
    """A byte per token, 0 for those that are not attended to."""
    mask_row_stride: int
    mask_head_stride: int
    output: int
    """(units, rows, head_dim) fp32, normalised within the unit."""
    lse: int
    """(units, rows) fp32."""


class ExactSide(NamedTuple):
    """Exact keys or values of one span; components lie side by side."""

    states: int
    kind: int
    """How they are stored: one of :data:`kvbench.kernels.cpu.llvm.exact_ops.KINDS`."""
    itemsize: int
    row_stride: int
    head_stride: int
    token_stride: int
    components: int
    tokens: int


class ExactJob(NamedTuple):
    """Decode attention on exact spans, one after the other; names as in :class:`CodedJob`."""

    splits: int
    spans: int
    heads: int
    rows: int
    query: int
    """(batch, heads, rows, key_width) fp32."""
    key_width: int
    value_width: int
    scaling: int
    """The bits of an fp32 number."""
    sides: int
    """(spans, 2): an :class:`ExactSide` of keys and one of values each."""
    mask: int
    mask_row_stride: int
    mask_head_stride: int
    output: int
    lse: int


class MergeJob(NamedTuple):
    """One softmax over ``parts``; a :class:`MergePart` of each follows."""

    heads: int
    """Query heads of all rows of the batch."""
    width: int
    parts: int
    output: int
    """(heads, width) fp32."""
    lse: int
    """(heads,) fp32."""


class MergePart(NamedTuple):
    """Outputs (units, rows, width) and log-sum-exps (units, rows) of a part."""

    output: int
    lse: int
    rows: int
    """Query heads of a unit."""
    stride: int
    """Units from one group of heads to the next."""


class StepJob(NamedTuple):
    """Attention of one decode step over several parts: what kind each is of, and the address of its job, follow.

    Whoever finishes the last of all ``units`` merges them.
    """

    finished: int
    units: int
    attentions: int
    merge: int
    """A :class:`MergeJob`; 0: there is nothing to merge."""


EXACT, CODED = 0, 1
"""Kinds of attention in a :class:`StepJob`."""


class UnpackPlan(NamedTuple):
    """How packed codes become columns (:mod:`kvbench.kernels.cpu.column_layout`)."""

    vectors: int
    vector_count: int
    windows: int
    orders: int
    starts: int
    tables: int
    runs: int
    run_count: int
    levels: int
    looked_up: int


class UnpackVector(NamedTuple):
    """16 columns that are unpacked at once."""

    column: int
    """The first of them."""
    first_slot: int
    slots: int
    first_part: int
    """Where their table begins."""
    parts: int
    """Parts of 64 bytes of the table that their codes are looked up in; 0 for codes that are numbers themselves."""


class UnpackRun(NamedTuple):
    """Components of one width that a plan leaves out."""

    width: int
    column: int
    """The first of their columns."""
    components: int
    byte: int
    """Where in a group of eight tokens their codes begin."""
    fine_column: int
    """The first column of second bytes; -1 without any."""


def nothing(record: Any) -> Any:
    """A ``record`` of zeros: what it describes is not there."""
    return record(*[0] * len(record._fields))


def pack(*records: NamedTuple) -> NDArray[np.int64]:
    """``records`` one after the other."""
    return np.array([field for record in records for field in record], np.int64)


def place(dtype: np.dtype[Any], *names: str) -> int:
    """Which of the packed integers the field is that ``names`` lead to."""
    fields, at = dtype.fields, 0
    for name in names:
        assert fields is not None
        inner, offset = fields[name][:2]
        fields, at = inner.fields, at + offset
    return at // 8


@lru_cache(maxsize=64)
def fp32_bits(number: float) -> int:
    """The bits of ``number`` in fp32, as an integer."""
    return int(np.float32(number).view(np.int32))


def dtype_of(*records: Any, **nested: Any) -> np.dtype[Any]:
    """The dtype of records that lie one after the other; those in ``nested`` are read through their name."""
    fields = [(name, np.int64) for record in records for name in record._fields]
    return np.dtype([*fields, *((name, dtype_of(record)) for name, record in nested.items())])


CODED_JOB = dtype_of(
    Claims,
    CodedJob,
    keys=CodedSide,
    rebuilt=RebuiltSide,
    stream=CodedSide,
    turned=TurnedQuery,
    exact=ExactSide,
    values=CodedSide,
)
EXACT_JOB = dtype_of(Claims, ExactJob)
EXACT_SIDE = dtype_of(ExactSide)
MERGE_JOB = dtype_of(MergeJob)
MERGE_PART = dtype_of(MergePart)
STEP_JOB = dtype_of(StepJob)
UNPACK_PLAN = dtype_of(UnpackPlan)
UNPACK_VECTOR = dtype_of(UnpackVector)
UNPACK_RUN = dtype_of(UnpackRun)
