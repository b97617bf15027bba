import pytest
import torch

from kvbench.codecs.transforms.rope import commuting_basis, frequency_pairs, rotation_averaged
from kvbench.errors import UnsupportedModelError

HALVES = torch.tensor([[0, 3], [1, 4], [2, 5]])
NEIGHBOURS = torch.tensor([[0, 1], [2, 3], [4, 5]])


def _rotated(keys, pairs):
    """(tokens, heads, d) rotated by a different angle per token and frequency."""
    rotated = keys.clone()
    angles = torch.arange(len(keys))[:, None, None] * torch.tensor([1.0, 0.37, 0.11]).double()
    a, b = keys[..., pairs[:, 0]], keys[..., pairs[:, 1]]
    rotated[..., pairs[:, 0]] = a * angles.cos() - b * angles.sin()
    rotated[..., pairs[:, 1]] = b * angles.cos() + a * angles.sin()
    return rotated


def _keys(heads=2, dims=8):
    torch.manual_seed(0)
    mixing = torch.randn(heads * dims, heads * dims).double()
    return (torch.randn(4000, heads * dims).double() @ mixing).view(-1, heads, dims)


def _second(states):
    flat = states.flatten(1)
    return flat.T @ flat / len(flat)


@pytest.mark.parametrize("pairs", [HALVES, NEIGHBOURS])
def test_pairs_are_found_from_energies(pairs):
    keys = _keys()
    assert torch.equal(frequency_pairs(_second(keys), _second(_rotated(keys, pairs)), 2, 6), pairs)


def test_other_pairings_are_refused():
    keys = _keys()
    odd = torch.tensor([[0, 5], [1, 3], [2, 4]])
    with pytest.raises(UnsupportedModelError, match="neither by halves nor by neighbours"):
        frequency_pairs(_second(keys), _second(_rotated(keys, odd)), 2, 6)


@pytest.mark.parametrize("pairs", [HALVES, NEIGHBOURS])
def test_commuting_basis_is_orthonormal_and_its_values_are_its_energies(pairs):
    keys = _keys()
    basis = commuting_basis(_second(_rotated(keys, pairs)), 2, pairs)
    encoder = basis.encoder[0]
    torch.testing.assert_close(encoder.T @ encoder, torch.eye(16).double())
    latents = _rotated(keys, pairs).flatten(1) @ encoder
    energies = latents.square().mean(0).view(-1, 2).mean(1)
    torch.testing.assert_close(energies, basis.values[0].view(-1, 2).mean(1))


def test_rotation_average_is_the_average():
    torch.manual_seed(0)
    root = torch.randn(1, 8, 8).double()
    metric = root @ root.transpose(1, 2)
    total, count = torch.zeros_like(metric), 2000
    torch.manual_seed(1)
    for angles in torch.rand(count, 3).double() * 2 * torch.pi:
        rotation = torch.eye(8).double()
        for (a, b), angle in zip(HALVES.tolist(), angles, strict=True):
            rotation[a, a] = rotation[b, b] = angle.cos()
            rotation[a, b], rotation[b, a] = -angle.sin(), angle.sin()
        total += rotation.T @ metric @ rotation / count
    torch.testing.assert_close(rotation_averaged(metric, HALVES), total, atol=0.7, rtol=0)
