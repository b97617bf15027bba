"""Bases without data: orthogonal, seeded, and kept in memory once."""

from __future__ import annotations

import pytest
import torch

from kvbench.codecs.transforms.rotations import hadamard, random_orthogonal, random_rotation, shared_basis


@pytest.mark.parametrize("size", [1, 2, 24, 64, 80, 128])
@pytest.mark.parametrize("make", [random_rotation, random_orthogonal])
def test_orthogonal_and_seeded(make, size) -> None:  # type: ignore[no-untyped-def]
    matrix = make(size, 3)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.equal(matrix, make(size, 3))
    assert size <= 2 or not torch.equal(matrix, make(size, 4))


def test_powers_of_two_get_a_hadamard_matrix() -> None:
    matrix = random_rotation(64, 0)
    torch.testing.assert_close(matrix.abs(), torch.full((64, 64), 1 / 8, dtype=torch.float64))
    assert torch.equal(hadamard(2) * 2**0.5, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64))


def test_a_rotation_spreads_an_outlier_channel() -> None:
    spike = torch.zeros(64, dtype=torch.float64)
    spike[5] = 8
    torch.testing.assert_close((spike @ random_rotation(64, 0)).abs(), torch.ones(64, dtype=torch.float64))


def test_all_heads_share_one_matrix_in_memory() -> None:
    basis = shared_basis(random_orthogonal(16, 0)[:, :6], 5, torch.float32, torch.device("cpu"))
    assert (basis.groups, basis.rank) == (5, 6)
    assert basis.encoder.untyped_storage().nbytes() == 16 * 6 * 4
    states = torch.randn(2, 5, 7, 16)
    projected = basis.inverse(basis.forward(states), 5)
    again = basis.inverse(basis.forward(projected), 5)
    torch.testing.assert_close(projected, again)
    assert (projected.norm(dim=-1) < states.norm(dim=-1)).all()
