"""Multi-head latent attention two ways: absorbed into the latents, or over keys and values rebuilt from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvbench.projection.step_time import Setting


@dataclass(frozen=True)
class Absorption:
    """Operations for one cached token of one layer on one device (2 for a multiply-add).

    ``absorbed`` and ``rebuilt`` are needed for every new token that attends to it, ``rebuilding`` once for all of them.
    ``break_even`` new tokens of a sequence at once are the least for which rebuilding takes fewer operations; None if
    it never does. Up to ``memory_bound`` new tokens at once absorbed attention is bound by reading the cache.
    """

    absorbed: int
    rebuilt: int
    rebuilding: int
    break_even: int | None
    memory_bound: float


def absorption(setting: Setting) -> Absorption | None:
    """Both ways for the model of ``setting``; None without latent attention.

    Per head, a latent of rank r with keys of n channels without RoPE, p with it, and values of v: absorbed scores take
    r + p multiplications and sums r; rebuilt ones n + p and v, after r · (n + v) to rebuild (DeepSeek-V2,
    arXiv 2405.04434, section 2.1.2).
    """
    shape, latent = setting.shape, setting.shape.latent
    if latent is None:
        return None
    heads = shape.heads // setting.parallel.tensor
    absorbed = 2 * heads * (2 * latent.rank + latent.rope)
    rebuilt = 2 * heads * (latent.nope + latent.rope + shape.value_dim)
    rebuilding = 2 * heads * latent.rank * (latent.nope + shape.value_dim)
    saved = absorbed - rebuilt
    read_s = setting.width * latent.width / (setting.device.bandwidth * setting.limits.memory)
    peak = setting.device.peak(setting.activations) * setting.limits.compute
    return Absorption(
        absorbed, rebuilt, rebuilding, math.ceil(rebuilding / saved) if saved > 0 else None, read_s * peak / absorbed
    )
