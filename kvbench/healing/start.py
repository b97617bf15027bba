"""Where training begins: with the bases as they were fitted, or with those of the least cost in closed form."""

from __future__ import annotations

from statistics import fmean

from torch import Tensor

from kvbench.cache.attach import Plan
from kvbench.healing.bases import Bases
from kvbench.healing.reading import Reading
from kvbench.healing.training import NOTHING
from kvbench.healing.watching import Watch, Watched, watch

WATCHED = 16
"""Windows, of those to train on, on which it is measured what predictions make of every basis."""
COMPARED = 4
"""Windows, others of them, on which two beginnings are compared."""


def best_start(
    reading: Reading,
    plan: Plan,
    windows: Tensor,
    shares: tuple[float, ...],
    each_window: Watched = lambda done, total: None,
) -> Watch:
    """Watch ``plan``, or the plan with its bases weighted by what predictions make of them, if that is the better.

    Weighted bases are the optimum of the cost's second order, one layer at a time (:meth:`Seen.weighted`). They need
    not be better: a quantizer may have been made for the components that it met first, and few windows say little.
    """
    watched, compared = windows[:-COMPARED][:WATCHED], windows[-COMPARED:]
    share = sum(shares) / len(shares)
    if not len(watched):
        return watch(reading, plan, windows, share, each_window)
    fitted = watch(reading, plan, watched, share, each_window)
    weighted = fitted.weighted()
    before, after = (reading.divergences(Bases(each), compared, shares) for each in (plan, weighted))
    left = fmean(new / max(old, NOTHING) for new, old in zip(after, before, strict=True))
    return watch(reading, weighted, watched, share, each_window) if left < 1 else fitted
