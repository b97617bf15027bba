"""Before a unit's first tile and after its last: queries into the latents, sums to outputs.

``side`` is a :class:`~kvbench.kernels.cpu.records.CodedSide`, ``work`` a
:class:`~kvbench.kernels.cpu.workspace.Workspace`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kvbench.kernels.cpu.llvm import exact_ops, query_ops, vectors
from kvbench.kernels.cpu.memory import IN_ORDER, JIT, ROWS_AT_ONCE, copy_words, fill, floats, longs

_F = np.float32


@njit(**JIT)
def head_basis(side: Any, group: int, head: int) -> Any:
    """Addresses of decoder and mean of a ``group``'s ``head``."""
    size = 2 if side.basis_in_fp16 else 4
    decoder = group * side.decoder_group_stride + head * side.decoder_head_stride
    mean = group * side.mean_group_stride + head * side.mean_head_stride
    return side.decoder + size * decoder, side.mean + size * mean


@njit(**JIT)
def basis_kind(side: Any) -> int:
    """How decoder and mean are stored."""
    return exact_ops.FP16 if side.basis_in_fp16 else exact_ops.FP32


@njit(**JIT)
def read_mean(side: Any, mean: int, out: int) -> None:
    """The mean of one head, ``head_dim`` numbers, as fp32."""
    if side.basis_in_fp16:
        query_ops.widen(mean, out, side.head_dim)
    else:
        copy_words(mean, out, side.head_dim)


@njit(**JIT)
def project_query(query: int, width: int, side: Any, group: int, work: Any) -> None:
    """Queries (rows, head_dim) → ``latent_query``: with keys z D + μ, q · k = (D q) · z + q · μ (``mean_score``).

    ``width`` numbers lie between one row and the next.
    """
    components, dim, each, kind = side.components, side.head_dim, side.queries_per_head, basis_kind(side)
    step = (2 if side.basis_in_fp16 else 4) * side.decoder_row_stride
    mean_score = floats(work.mean_score, work.rows)
    if not side.decoder:
        for row in range(work.rows):
            copy_words(query + 4 * row * width, work.latent_query + 4 * row * components, components)
        fill(work.mean_score, work.rows, _F(0))
        return
    for head in range(work.rows // each):
        decoder, mean = head_basis(side, group, head)
        read_mean(side, mean, work.head_mean)
        for row in range(head * each, (head + 1) * each):
            mean_score[row] = dot(work.head_mean, query + 4 * row * width, dim)
        for row in range(head * each, (head + 1) * each, ROWS_AT_ONCE):
            together = min(ROWS_AT_ONCE, (head + 1) * each - row)
            q, latent = query + 4 * row * width, work.latent_query + 4 * row * components
            exact_ops.exact_scores(
                decoder, q, latent, together, components, dim, step, 4 * width, 4 * components, 0, kind
            )


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
    ordered, component = side.ordered_columns, longs(side.component_of_column, columns)
    log_sums, top, mean_score = floats(lse, rows), floats(work.top, rows), floats(work.mean_score, rows)
    for row in range(rows):
        mass = lane_sum(work.mass + 4 * row * lanes)
        log_sums[row] = top[row] + np.log(mass) + mean_score[row] * scaling
        total = floats(work.total + 4 * row * work.total_width, work.total_width)
        for channel in range(side.column_groups):
            first = channel * side.group_columns
            bias = lane_sum(work.bias + 4 * (row * work.bias_width + channel * lanes))
            for i in range(first, min(first + side.group_columns, columns)):
                total[i] = (total[i] + bias) / mass
        if side.column_scale:
            column_scale = floats(side.column_scale, columns)
            for i in range(columns):
                total[i] *= column_scale[i]
        out = floats(work.latent_output + 4 * row * components, components)
        for i in range(ordered):
            out[i] = total[i]
        for i in range(ordered, components):
            out[i] = _F(0)
        for i in range(ordered, columns):
            out[component[i]] += total[i]


@njit(**IN_ORDER)
def lane_sum(address: int) -> Any:
    """The sum of one vector of partial sums."""
    lanes, total = floats(address, vectors.LANES), _F(0)
    for i in range(vectors.LANES):
        total += lanes[i]
    return total


@njit(**JIT)
def output_from_latents(side: Any, group: int, out: int, work: Any) -> None:
    """``latent_output`` (rows, components) → outputs (rows, head_dim)."""
    components, dim, each, kind = side.components, side.head_dim, side.queries_per_head, basis_kind(side)
    if not side.decoder:
        copy_words(work.latent_output, out, work.rows * components)
        return
    size = 2 if side.basis_in_fp16 else 4
    step = size * side.decoder_row_stride
    for head in range(work.rows // each):
        decoder, mean = head_basis(side, group, head)
        for row in range(head * each, (head + 1) * each):
            read_mean(side, mean, out + 4 * row * dim)
        for row in range(head * each, (head + 1) * each, ROWS_AT_ONCE):
            together = min(ROWS_AT_ONCE, (head + 1) * each - row)
            latent, to = work.latent_output + 4 * row * components, out + 4 * row * dim
            for part in range(0, dim, exact_ops.COLUMNS):
                basis, rest = decoder + size * part, dim - part
                exact_ops.exact_mix(
                    basis, latent, to + 4 * part, together, components, step, 4 * components, 4 * dim, rest, 0, kind
                )
