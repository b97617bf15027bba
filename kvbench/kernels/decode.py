"""One decode step's attention over exact tensors: by kernel where one fits, else in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.kernels.choice import Kernels, kernels_for
from kvbench.kernels.reference import Part, Partial, merge, partial_attention


def fitting_kernels(query: Tensor, softcap: float | None) -> Kernels | None:
    """The kernels for one ``query`` (batch, heads, 1, d) per row; none for prompts, capped scores, gradients."""
    if query.shape[2] != 1 or softcap is not None or query.requires_grad:
        return None
    kernels = kernels_taking(query.dtype, query.device)
    return kernels if kernels is not None and kernels.takes(query.shape[-1]) else None


def kernels_taking(dtype: torch.dtype, device: torch.device) -> Kernels | None:
    """The kernels for queries of ``dtype`` on ``device``, if there are any."""
    kernels = kernels_for(device)
    return kernels if kernels is not None and dtype in kernels.dtypes else None


def merged(parts: Sequence[Part], query: Tensor, kernels: bool) -> Partial:
    """:func:`kvbench.kernels.reference.merge`, through a kernel if ``kernels`` and one fits."""
    fitting = fitting_kernels(query, None) if kernels else None
    return merge(parts) if fitting is None else fitting.merge(parts)


def attend_exact(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    mask: Tensor | None,
    softcap: float | None,
    kernels: bool,
    before: tuple[Tensor, Tensor] | None = None,
) -> Part:
    """:func:`kvbench.kernels.reference.partial_attention`, through a kernel if ``kernels`` and one fits.

    ``before``: keys and values of earlier tokens, which the mask covers too. Kernels read each tensor where it lies and
    in the dtype that it is stored in.
    """
    fitting = fitting_kernels(query, softcap) if kernels else None
    dtypes = [states.dtype for states in (keys, values, *(before or ()))]
    if fitting is None or not fitting.takes(keys.shape[-1], *dtypes):
        if before is not None:
            keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
        return partial_attention(query, keys, values, scaling, mask, softcap)
    return fitting.exact(query, keys, values, scaling, mask, before)
