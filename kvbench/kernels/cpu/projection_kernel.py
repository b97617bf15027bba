"""Before a unit's first tile and after its last: queries into the latents, sums to outputs.

``side`` is a :class:`~kvbench.kernels.cpu.records.CodedSide`, ``work`` a
:class:`~kvbench.kernels.cpu.records.Workspace`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import float_ops, query_ops, vectors
from kvbench.kernels.cpu.memory import IN_ORDER, JIT, copy_words, floats, longs

_F = np.float32


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
        query_ops.widen(
            side.decoder + 2 * (decoder + component * side.decoder_row_stride), wide + 4 * component * dim, dim
        )
    query_ops.widen(side.mean + 2 * mean, wide + 4 * components * dim, dim)
    return wide, wide + 4 * components * dim, 4 * dim


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
        for component in range(0, whole, 4):
            float_ops.exact_scores(decoder + component * step, q, latent + 4 * component, 1, dim, step, 0, 0)
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
        for part in range(0, dim, 4 * vectors.LANES):
            float_ops.exact_mix(decoder + 4 * part, latent, to + 4 * part, 1, components, step, 0, 0, dim - part)
