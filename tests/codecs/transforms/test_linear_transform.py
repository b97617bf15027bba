"""Affine maps over head groups: what goes in comes back, and heads keep their order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.codecs.transforms.fitting import group_blocks, orthonormal_transform, principal_axes
from kvbench.codecs.transforms.linear import LinearTransform, gather_heads, scatter_heads


def orthonormal(groups: int, size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(groups, size, size, generator=generator, dtype=torch.float64))[0]


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31)
)
@settings(deadline=None)
def test_full_rank_round_trip(batch: int, groups: int, per_group: int, tokens: int, dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads, size = groups * per_group, per_group * dim
    states = torch.randn(batch, tokens, heads, dim, generator=generator, dtype=torch.float64).transpose(1, 2)
    mean = torch.randn(heads * dim, generator=generator, dtype=torch.float64)
    transform = orthonormal_transform(orthonormal(groups, size, generator), mean, size, torch.float64)
    latents = transform.forward(states)
    assert latents.shape == (batch, groups, tokens, size)
    assert (transform.groups, transform.rank) == (groups, size)
    assert torch.allclose(transform.inverse(latents, heads), states, rtol=1e-10, atol=1e-12)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4))
@settings(deadline=None)
def test_heads_of_a_group_are_adjacent_and_in_order(groups: int, per_group: int, tokens: int, dim: int) -> None:
    heads = groups * per_group
    states = torch.arange(2 * heads * tokens * dim).view(2, heads, tokens, dim)
    grouped = gather_heads(states, groups)
    assert grouped.shape == (2, groups, tokens, per_group * dim)
    for group in range(groups):
        members = [states[:, group * per_group + member] for member in range(per_group)]
        assert torch.equal(grouped[:, group], torch.cat(members, -1))
    assert torch.equal(scatter_heads(grouped, heads), states)


def test_a_slice_of_a_longer_tail_can_be_transformed() -> None:
    """What leaves the window is a view into it."""
    states = torch.randn(2, 4, 20, 6, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    transform = orthonormal_transform(orthonormal(2, 12, generator), torch.zeros(24), 5, torch.float64)
    assert torch.equal(transform.forward(states[:, :, 3:11]), transform.forward(states[:, :, 3:11].clone()))


def test_latents_are_in_the_basis_dtype_whatever_the_models() -> None:
    generator = torch.Generator().manual_seed(0)
    transform = orthonormal_transform(orthonormal(1, 8, generator), torch.zeros(8), 4, torch.float32)
    latents = transform.forward(torch.randn(1, 2, 3, 4).bfloat16())
    assert latents.dtype == torch.float32
    assert transform.inverse(latents.bfloat16(), 2).dtype == torch.float32


def test_principal_axes_are_sorted_per_group_and_diagonalise() -> None:
    data = torch.randn(500, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    moment = data.T @ data
    values, axes = principal_axes(moment, 3)
    assert values.shape == (3, 4) and (values.diff() <= 0).all() and (values >= 0).all()
    rebuilt = axes @ torch.diag_embed(values) @ axes.transpose(1, 2)
    assert torch.allclose(rebuilt, group_blocks(moment, 3))


def test_truncated_pca_leaves_the_discarded_eigenvalues() -> None:
    """The Eckart–Young bound is met: the mean squared error is the sum of what was cut."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    data = torch.randn(2000, 12, generator=generator, dtype=torch.float64) @ mixing + 7
    centred = data - data.mean(0)
    values, axes = principal_axes(centred.T @ centred / len(data), 1)
    states = data.view(1, -1, 3, 4).transpose(1, 2)
    for rank in (1, 5, 12):
        transform = orthonormal_transform(axes, data.mean(0), rank, torch.float64)
        error = (transform.inverse(transform.forward(states), 3) - states).square().sum((0, 1, 3)).mean()
        assert float(error) == pytest.approx(float(values[0, rank:].sum()), rel=1e-9, abs=1e-9)


def test_model_level_tensors_are_named() -> None:
    transform = LinearTransform(torch.ones(1, 4, 2), torch.ones(1, 2, 4), torch.ones(1, 4))
    assert [tensor.shape for tensor in transform.tensors()] == [(1, 4, 2), (1, 2, 4), (1, 4)]
