"""In which units a basis is trained: those in which every number of it changes predictions alike.

States vary a hundred times as much along their first principal components as along those where a rank cuts, and
predictions hang on some of their directions much more than on others; but Adam moves all numbers of a matrix by about
as much. In the bases' own numbers, what is too little for the components at the cut is ruin for the first. So they are
changed in coordinates in which what multiplies them is white (covariance one), and in which what they give counts
alike for the predictions (Fisher information one): the Kronecker factors of K-FAC (Martens & Grosse 2015, arXiv
1503.05671), as a fixed preconditioner. The unit is what compression loses: changes of 1 in all numbers of a matrix
change the divergence by about as much as the basis costs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvbench.codecs.transforms.fitting import weighted_basis
from kvbench.codecs.transforms.linear import LinearTransform

LEAST = 0.03
"""Fisher information of a direction, relative to the mean, that it is taken to have at least: few windows were seen."""


@dataclass(frozen=True, eq=False)
class Scale:
    """Units of one transform. With changes a, b and c in them, encoders are E + L₁aR₁, decoders D + L₂bR₂, and means
    μ + cR₃, for ``encoder`` (L₁, R₁), ``decoder`` (L₂, R₂) and ``mean`` R₃, each (groups, n, n).
    """

    encoder: tuple[Tensor, Tensor]
    decoder: tuple[Tensor, Tensor]
    mean: Tensor

    def added(self, part: str, change: Tensor) -> Tensor:
        """What a ``change`` in these units adds to a ``part``: "encoder", "decoder" or "mean"."""
        if part == "mean":
            return torch.matmul(change.unsqueeze(-2), self.mean).squeeze(-2)
        left, right = self.encoder if part == "encoder" else self.decoder
        return left @ change @ right


@dataclass
class Seen:
    """Sums of outer products (groups, in, in): of centred ``states``, of their ``errors``, and of ``gradients``."""

    states: Tensor | float = 0.0
    errors: Tensor | float = 0.0
    gradients: Tensor | float = 0.0
    tokens: int = 0

    def add(self, centred: Tensor, error: Tensor) -> None:
        """States (batch, groups, tokens, in) less the mean, and what is lost of them."""
        self.states = self.states + _outer(centred)
        self.errors = self.errors + _outer(error)
        self.tokens += centred.shape[0] * centred.shape[2]

    def add_gradient(self, gradient: Tensor) -> None:
        """That of the log-probability of sampled tokens, by the decoded states: (batch, groups, tokens, in)."""
        self.gradients = self.gradients + _outer(gradient)

    def scale(self, transform: LinearTransform) -> Scale:
        """Units for ``transform``; directions that vary less than what is lost count as if they varied as much."""
        states, errors, fisher = (self._mean(sums) for sums in (self.states, self.errors, self.gradients))
        encoder, decoder = (each.double() for each in (transform.encoder, transform.decoder))
        width, rank = encoder.shape[-2:]
        lost = _trace(errors) / width
        cost = _trace(fisher @ errors).sqrt()[:, None, None]
        white, white_latents = (_white(each, lost) for each in (states, encoder.mT @ states @ encoder))
        alike, alike_latents = (
            _white(each, LEAST * _trace(each) / each.shape[-1]).mT for each in (fisher, decoder @ fisher @ decoder.mT)
        )
        both = cost / (width * rank) ** 0.5

        def finished(tensor: Tensor) -> Tensor:
            return tensor.to(transform.dtype).contiguous()

        return Scale(
            (finished(white * both), finished(alike_latents)),
            (finished(white_latents * both), finished(alike)),
            finished(alike * cost / width**0.5),
        )

    def weighted(self, transform: LinearTransform, wanted: Tensor | None) -> LinearTransform:
        """The basis of the rank of ``transform`` whose error costs predictions least, in closed form.

        It minimises tr(F · second moment of the error) for the Fisher information F, with ``wanted`` (in, in) the
        projection onto what is to be given back (None: everything).
        """
        states, fisher = self._mean(self.states), self._mean(self.gradients)
        groups, width = fisher.shape[:2]
        if wanted is not None:
            states = wanted.mT @ states @ wanted
        least = (
            LEAST * _trace(fisher)[:, None, None] / width * torch.eye(width, dtype=fisher.dtype, device=fisher.device)
        )
        basis = weighted_basis(torch.block_diag(*states), torch.block_diag(*(fisher + least)), groups)
        if wanted is not None:
            basis = replace(basis, encoder=wanted @ basis.encoder)
        centre = transform.mean.double().flatten()
        return basis.transform(centre, transform.rank, transform.decoder.dtype)

    def _mean(self, sums: Tensor | float) -> Tensor:
        assert isinstance(sums, Tensor)
        return sums / self.tokens


def _outer(states: Tensor) -> Tensor:
    """Sum over tokens and rows, (groups, in, in)."""
    flat = states.detach().double().transpose(0, 1).flatten(1, 2)
    return flat.mT @ flat


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)


def _white(covariance: Tensor, least: Tensor) -> Tensor:
    """W (groups, n, n), its columns eigenvectors, such that xW has covariance one for x of this ``covariance``.

    ``least`` (groups,) is the variance that every direction is taken to have at least.
    """
    variances, directions = torch.linalg.eigh(covariance)
    least = least.clamp_min(torch.finfo(torch.float32).tiny)
    return directions * torch.maximum(variances, least[:, None]).rsqrt()[:, None]
