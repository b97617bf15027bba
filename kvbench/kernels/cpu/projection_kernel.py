"""Before a unit's first tile and after its last: queries into the latents and to bytes, sums to outputs.

``side`` is a :class:`~kvbench.kernels.cpu.records.CodedSide`, ``work`` a
:class:`~kvbench.kernels.cpu.records.Workspace`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import exact_ops, vectors
from kvbench.kernels.cpu.memory import IN_ORDER, JIT, copy_words, floats, halves, int8s, longs

_F = np.float32
LOW = _F(1 / 254)
"""What the second byte of a rounded query counts, in units of the first."""


@njit(**JIT)
def wide_basis_size(side: Any) -> Any:
    """fp32 numbers that one head's decoder and mean take where they are stored in fp16."""
    return (side.components + 1) * side.head_dim if side.basis_in_fp16 else 0


@njit(**JIT)
def head_basis(side: Any, group: int, head: int, wide: int) -> Any:
    """Addresses of decoder and mean in fp32 of a ``group``'s ``head``, and bytes between decoder rows.

    What is stored in fp16 is copied to ``wide``: a few vector conversions beside a whole tile of tokens.
    """
    decoder = group * side.decoder_group_stride + head * side.decoder_head_stride
    mean = group * side.mean_group_stride + head * side.mean_head_stride
    if not side.basis_in_fp16:
        return side.decoder + 4 * decoder, side.mean + 4 * mean, 4 * side.decoder_row_stride
    components, dim = side.components, side.head_dim
    for component in range(components):
        widen(side.decoder + 2 * (decoder + component * side.decoder_row_stride), wide + 4 * component * dim, dim)
    widen(side.mean + 2 * mean, wide + 4 * components * dim, dim)
    return wide, wide + 4 * components * dim, 4 * dim


@njit(**JIT)
def widen(source: int, target: int, count: int) -> None:
    """``count`` fp16 numbers as fp32."""
    narrow, wide = halves(source, count), floats(target, count)
    for i in range(count):
        wide[i] = vectors.half_to_float(narrow[i])


@njit(**JIT)
def project_query(query: int, side: Any, head: int, work: Any) -> None:
    """Queries (rows, head_dim) → ``latent_query``: with keys z D + μ, q · k = (D q) · z + q · μ (``mean_score``)."""
    components, dim, decoder, mean, step = side.components, side.head_dim, 0, 0, 0
    mean_score = floats(work.mean_score, work.rows)
    for row in range(work.rows):
        latent, q = work.latent_query + 4 * row * components, query + 4 * row * dim
        if not side.decoder:
            copy_words(q, latent, components)
            mean_score[row] = _F(0)
            continue
        if row % side.queries_per_head == 0:
            decoder, mean, step = head_basis(side, head, row // side.queries_per_head, work.wide_basis)
        whole = components // 4 * 4
        exact_ops.exact_scores(decoder, q, latent, 1, whole, dim, step, 0, 0, 0, exact_ops.FP32)
        rest = floats(latent, components)
        for component in range(whole, components):
            rest[component] = dot(decoder + component * step, q, dim)
        mean_score[row] = dot(mean, q, dim)


@njit(**JIT)
def dot(x: int, y: int, count: int) -> Any:
    """x · y of ``count`` fp32 numbers each."""
    a, b, total = floats(x, count), floats(y, count), _F(0)
    for i in range(count):
        total += a[i] * b[i]
    return total


@njit(**JIT)
def query_by_column(query: int, scaling: Any, side: Any, out: int) -> None:
    """One row of the query as the unpacked bytes meet it: components by column, times what a byte stands for."""
    by_component, by_column, columns = floats(query, side.components), floats(out, side.columns), side.columns
    if side.component_of_column:
        component = longs(side.component_of_column, columns)
        for i in range(columns):
            by_column[i] = by_component[component[i]] * scaling
    else:
        for i in range(columns):
            by_column[i] = by_component[i] * scaling
    if side.column_scale:
        column_scale = floats(side.column_scale, columns)
        for i in range(columns):
            by_column[i] *= column_scale[i]


@njit(**JIT)
def round_query(side: Any, scaling: Any, work: Any) -> None:
    """Each row's query to two signed bytes per column and channel group, in the order that dot products read."""
    rows = work.rows
    units = floats(work.query_unit, side.channel_groups * rows)
    sums = floats(work.query_sum, side.channel_groups * rows)
    for row in range(rows):
        query_by_column(work.latent_query + 4 * row * side.components, scaling, side, work.column_query)
        for channel in range(side.channel_groups):
            first = channel * side.group_columns
            count = min(side.group_columns, side.columns - first)
            query = floats(work.column_query + 4 * first, count)
            most = _F(1e-30)
            for i in range(count):
                most = max(most, abs(query[i]))
            high_at = work.query_bytes + 2 * (channel * rows + row) * work.query_stride
            highs, lows = int8s(high_at, work.query_stride), int8s(high_at + work.query_stride, work.query_stride)
            total = _F(0)
            for i in range(count):
                y = query[i] * (_F(127) / most)
                high = np.int32(y + _F(128.5)) - 128
                low = np.int32((y - _F(high)) * _F(254) + _F(128.5)) - 128
                total += _F(high) + _F(low) * LOW
                # 16 components of one token, then the same for three more tokens, 4 components at a time
                place = i // 16 * 64 + i % 16 // 4 * 16 + i % 4
                for token in range(4):
                    highs[place + 4 * token] = np.int8(high)
                    lows[place + 4 * token] = np.int8(low)
            units[channel * rows + row] = most / _F(127)
            sums[channel * rows + row] = total * most / _F(127)


@njit(**JIT)
def finalise_output(side: Any, scaling: Any, lse: int, work: Any) -> None:
    """Normalise one unit: ``latent_output`` (rows, components), and the log-sum-exp (rows,)."""
    rows, components, columns, lanes = work.rows, side.components, side.columns, vectors.LANES
    log_sums, top, mean_score = floats(lse, rows), floats(work.top, rows), floats(work.mean_score, rows)
    for row in range(rows):
        mass = lane_sum(work.mass + 4 * row * lanes)
        log_sums[row] = top[row] + np.log(mass) + mean_score[row] * scaling
        total = floats(work.total + 4 * row * work.total_width, work.total_width)
        for channel in range(side.channel_groups):
            first = channel * side.group_columns
            bias = lane_sum(work.bias + 4 * (row * work.bias_width + channel * lanes))
            for i in range(first, min(first + side.group_columns, columns)):
                total[i] = (total[i] + bias) / mass
        if side.column_scale:
            column_scale = floats(side.column_scale, columns)
            for i in range(columns):
                total[i] *= column_scale[i]
        out = floats(work.latent_output + 4 * row * components, components)
        if side.component_of_column:
            component = longs(side.component_of_column, columns)
            for i in range(components):
                out[i] = _F(0)
            for i in range(columns):
                out[component[i]] += total[i]
        else:
            for i in range(components):
                out[i] = total[i]


@njit(**IN_ORDER)
def lane_sum(address: int) -> Any:
    """The sum of one vector of partial sums."""
    lanes, total = floats(address, vectors.LANES), _F(0)
    for i in range(vectors.LANES):
        total += lanes[i]
    return total


@njit(**JIT)
def output_from_latents(side: Any, head: int, out: int, work: Any) -> None:
    """``latent_output`` (rows, components) → outputs (rows, head_dim)."""
    components, dim, decoder, mean, step = side.components, side.head_dim, 0, 0, 0
    for row in range(work.rows):
        latent, to = work.latent_output + 4 * row * components, out + 4 * row * dim
        if not side.decoder:
            copy_words(latent, to, components)
            continue
        if row % side.queries_per_head == 0:
            decoder, mean, step = head_basis(side, head, row // side.queries_per_head, work.wide_basis)
        copy_words(mean, to, dim)
        for part in range(0, dim, exact_ops.COLUMNS):
            basis, out_part, rest = decoder + 4 * part, to + 4 * part, dim - part
            exact_ops.exact_mix(basis, latent, out_part, 1, components, step, 0, 0, rest, 0, exact_ops.FP32)
