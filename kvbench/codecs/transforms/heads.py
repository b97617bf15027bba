"""Which KV heads should share a latent: grouping by similarity, and transforms over groups that are not adjacent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.codecs.transforms.fitting import Basis


def group_size(heads: int, most: int) -> int:
    """The largest divisor of ``heads`` up to ``most``."""
    return max(size for size in range(1, min(most, heads) + 1) if heads % size == 0)


def alignment(covariance: Tensor, heads: int) -> Tensor:
    """Linear centred kernel alignment (heads, heads) of the heads' outputs, from their covariance (K, K).

    ‖C_ij‖²_F / (‖C_ii‖_F ‖C_jj‖_F) (Kornblith et al. 2019, arXiv 1905.00414): 1 on the diagonal.
    """
    size = len(covariance) // heads
    energy = covariance.view(heads, size, heads, size).square().sum((1, 3))
    norms = energy.diagonal().sqrt().clamp_min(torch.finfo(energy.dtype).tiny)
    return energy / torch.outer(norms, norms)


def similar_groups(similarity: Tensor, size: int) -> list[list[int]]:
    """Heads in groups of ``size``, a divisor: the most similar free pair starts a group, the most similar join."""
    free = list(range(len(similarity)))
    groups = []
    while free:
        among = similarity[free][:, free].clone().fill_diagonal_(-1)
        first = int(among.max(1).values.argmax())
        group = [free.pop(first)]
        while len(group) < size:
            group.append(free.pop(int(similarity[group][:, free].mean(0).argmax())))
        groups.append(sorted(group))
    return sorted(groups)


def regroup(moment: Tensor, groups: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The matrix (K, K) with heads reordered group by group, and the index (K,) that reorders them."""
    order = torch.tensor([head for group in groups for head in group])
    index = torch.arange(len(moment)).view(len(order), -1)[order].flatten()
    return moment[index][:, index], index


def over_all_heads(basis: Basis, index: Tensor, rank: int) -> Basis:
    """``basis`` of reordered groups, cut at ``rank`` and written over all heads in their own order, as one group.

    Zeros stand where a component does not see a head, so that decoding needs no permutation of its own.
    """
    encoder = torch.block_diag(*basis.encoder[..., :rank])
    decoder = torch.block_diag(*basis.decoder[:, :rank])
    back = index.argsort()
    return Basis(basis.values[:, :rank].reshape(1, -1), encoder[back][None], decoder[:, back][None])
